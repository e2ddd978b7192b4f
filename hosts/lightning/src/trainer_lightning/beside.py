"""The training data and the loss of a Lightning trainer, for plugins that use them beside the run:
to find a learning rate, to look at the data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from trainer.data.loaders import EpochLoader
from trainer.hosting import HostedView
from trainer_callback.checks import takes

__all__ = ["Beside"]

_LOGS = ("log", "log_dict")


class Beside:
    """Lends what the trainer has.

    Attributes:
        is_computing: a loss is computed that is none of the run's.
    """

    def __init__(self, trainer: Any, view: HostedView) -> None:
        """Lets `view` have it."""
        self._trainer = trainer
        self._takes_index = takes(trainer.lightning_module.training_step, 2)
        self.is_computing: bool = False
        view.loss_of = self._compute
        if isinstance(trainer.train_dataloader, DataLoader):
            view.pass_apart = self._pass

    def _pass(self, epoch: int) -> Iterator[Any]:
        """Yields the batches of a pass of a copy of the loader, in an order of its own."""
        loader = EpochLoader(self._trainer.train_dataloader, 0, "train")
        for batch in loader.pass_apart(epoch):
            yield self._trainer.strategy.batch_to_device(batch)

    def _compute(self, batch: Any) -> Any:
        """Returns the loss as the module computes it; what it logs meanwhile is nobody's."""
        arguments = (batch, 0) if self._takes_index else (batch,)
        with self._unheard():
            answer = self._trainer.strategy.training_step(*arguments)
        return answer["loss"] if isinstance(answer, dict) else answer

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        own = vars(self._trainer.lightning_module)
        before = {name: own[name] for name in _LOGS if name in own}
        own.update(dict.fromkeys(_LOGS, _drop))
        self.is_computing = True
        try:
            yield
        finally:
            self.is_computing = False
            for name in _LOGS:
                del own[name]
            own.update(before)


def _drop(*arguments: Any, **named: Any) -> None:
    """Takes what is logged."""
