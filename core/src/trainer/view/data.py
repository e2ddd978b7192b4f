"""The training data of a run, as callbacks use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer_callback import UsageError

from ..data.batches import move_to_device
from .parts import Parts

__all__ = ["Data"]


class Data(Parts):
    """How long the run goes through its data, and passes over them beside it."""

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
