"""The mode of each part of a model: training or evaluation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from torch import nn

__all__ = ["Modes"]

logger: logging.Logger = logging.getLogger("trainer")


class Modes:
    """The modes of the parts of a model in a run, which are the user's: what is in evaluation mode
    in a model that is in training mode is so on purpose.
    """

    def __init__(self, model: nn.Module) -> None:
        """Changes nothing yet."""
        self._model = model
        self._is_told = False

    def leave_evaluation(self) -> None:
        """Sets a model that is in evaluation mode itself, as libraries hand them out, to training
        mode, with all its parts.
        """
        if self._model.training:
            return
        self._model.train()
        if not self._is_told:
            self._is_told = True
            logger.warning(
                "the model was in evaluation mode, and is in training mode now, with all its "
                "parts. For a part that has to stay in evaluation mode, call model.train() first, "
                "then eval() of that part."
            )

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Sets the model to evaluation mode, and puts the mode of each part back at the end."""
        before = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            yield
        finally:
            for module, mode in before:  # the outer ones first, whose `train` reaches the inner
                if module.training != mode:
                    module.train(mode)
            for module, mode in before:  # one that is a part of two came before the second
                module.training = mode
