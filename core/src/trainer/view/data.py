"""The training data of a run, and what is made of it beside the run, as callbacks use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from trainer_callback import UsageError

from ..data.batches import move_to_device
from ..step.answers import read_answer
from ..step.base_rate import change_base_rate, read_base_rate
from .parts import Parts

__all__ = ["Data"]


class Data(Parts):
    """How long the run goes through its data; passes over them, and losses, beside it; the rate."""

    __slots__ = ()

    @property
    def train_batches(self) -> int | None:
        loader = self.training if self.has_epochs else None
        return None if loader is None else loader.length

    @property
    def max_steps(self) -> int | None:
        config = self._config
        return self.position.updates_in_all(
            self.train_batches,
            config.gradient_accumulation_steps,
            config.epochs,
            config.max_steps,
        )

    @property
    def max_epochs(self) -> int | None:
        return self._config.epochs if self.has_epochs else None

    def pass_over_training_data(self) -> Iterator[Any]:
        self.queue.check_thread()
        if self.training is None or not self.has_epochs:
            raise UsageError(
                "pass_over_training_data: the loader of this run is not known yet. Hand it over "
                "before run.start() with run.use_loader(loader), or call this in a later hook; a "
                "loop over run.updates() has none."
            )
        batches = self.training.pass_apart(self.position.epoch)
        return (move_to_device(batch, self._device) for batch in batches)

    def compute_loss(self, batch: Any) -> Tensor:
        self.queue.check_thread()
        if self.loss_of is None:
            raise UsageError(
                "compute_loss: this run has a loop of its own, which alone knows its losses. Use "
                "it with a Trainer."
            )
        loss, _ = read_answer(self.loss_of(batch))
        if isinstance(loss, Tensor):
            return loss
        return loss.total / max(float(loss.count), 1.0)

    def change_base_rate(self, rate: float) -> str:
        self.queue.check_thread()
        updater = self.updater
        option = f"change_base_rate({rate!r})"
        before = read_base_rate(updater.optimizer)
        text = change_base_rate(updater.optimizer, updater.scheduler, rate, option=option)
        updater.rate_factor *= rate / before
        return text
