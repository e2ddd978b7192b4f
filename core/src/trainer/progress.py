"""How far a run has come: the numbers that a snapshot carries beside tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Progress"]


@dataclass
class Progress:
    """Counters of a run, over all resumes.

    Attributes:
        epoch: the current epoch, 0-based.
        step: optimizer updates done.
        batch_in_epoch: micro-batches of this epoch that are done.
        epoch_done: the epoch's end has passed, the next epoch has not started.
        validation_pending: a validation is due at this update and has not been completed.
        skipped_in_a_row: updates skipped for a non-finite loss or norm, since the last good one.
        metrics: the last value of each metric.
        history: one mapping of metrics per validation or epoch end.
    """

    epoch: int = 0
    step: int = 0
    batch_in_epoch: int = 0
    epoch_done: bool = False
    validation_pending: bool = False
    skipped_in_a_row: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epochs_done(self) -> int:
        """Epochs whose end has passed."""
        return self.epoch + int(self.epoch_done)

    @property
    def is_mid_epoch(self) -> bool:
        """Whether the loader stands inside an epoch."""
        return self.batch_in_epoch > 0 and not self.epoch_done

    @property
    def position(self) -> tuple[int, bool, bool]:
        """What tells two boundaries apart: behind one update there may be several."""
        return (self.step, self.epoch_done, self.validation_pending)

    def start_epoch(self) -> int:
        """Returns the number of the epoch to train: the next one where this is done."""
        if self.epoch_done:
            self.epoch, self.batch_in_epoch, self.epoch_done = self.epoch + 1, 0, False
        return self.epoch

    def state(self) -> dict[str, Any]:
        """Returns the counters as plain data."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """Returns the counters of `state`, which stay independent of it."""
        progress = cls(**state)
        progress.metrics = dict(progress.metrics)
        progress.history = [dict(entry) for entry in progress.history]
        return progress
