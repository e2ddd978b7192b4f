"""Whether backward passes reach an optimizer, and whether it is the run alone that steps it. Knows
no model.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import nn

from ..config import ConfigError

__all__ = ["Reach"]

logger: logging.Logger = logging.getLogger("trainer")


class Reach:
    """Looks after each backward pass whether it has reached an optimizer, and in the first update
    of a run whether somebody else steps it. Both cost nothing in later updates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, is_alone: bool) -> None:
        """Takes the optimizer.

        Args:
            is_alone: there are no others, whose turn an update may be.
        """
        self._optimizer = optimizer
        self._is_alone = is_alone
        self._guard: Any = None
        self._reached: nn.Parameter | None = None
        self._is_told = False

    def start(self) -> None:
        """A run begins: in its first update, nobody else may step the optimizer."""
        self._reached, self._is_told = None, False
        inner = getattr(self._optimizer, "optimizer", self._optimizer)  # Accelerate's wraps one
        with contextlib.suppress(AttributeError):  # one that is made without torch's constructor
            self._guard = inner.register_step_pre_hook(_refuse_step)

    def end(self) -> None:
        """Lets everybody step the optimizer from here on."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def check(self) -> None:
        """Looks, behind backward passes of an update, whether they have reached the optimizer:
        first at the parameter that was reached the last time.

        Raises:
            ConfigError: no parameter has a gradient, and none has had one in this run.
        """
        reached = self._reached
        if reached is not None and reached.grad is not None:
            return
        self.end()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        found = next((p for p in parameters if p.grad is not None), None)
        if found is not None:
            self._reached = found
        elif reached is None:
            raise ConfigError(
                "the first backward pass has given no parameter of the optimizer a gradient that "
                f"is still there, and {type(self._optimizer).__name__} has {len(parameters)}: "
                "training would change nothing. Compute the loss from run.module, or from the "
                "model that loss_fn is handed, not from another one or a copy, and leave "
                "zero_grad() to the run."
            )
        elif self._is_alone and not self._is_told:
            self._is_told = True
            logger.warning(
                "behind a backward pass no parameter of the optimizer has a gradient: the update "
                "changes nothing, and nor may later ones. Where that is not meant, leave "
                "zero_grad() to the run, and look what is frozen."
            )


def _refuse_step(*_: object) -> None:
    raise ConfigError(
        "the optimizer was stepped beside the run, so that each update would be taken twice. Leave "
        "optimizer.step() to the run."
    )
