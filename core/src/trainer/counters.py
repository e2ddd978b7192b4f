"""Where a run stands: the numbers that a snapshot carries beside tensors, and those of the update
that is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Position"]


@dataclass
class Position:
    """Counters of a run, over all resumes. There is one per run; everybody reads the same.

    Attributes:
        epoch: the current epoch, 0-based.
        step: optimizer updates done.
        batch: micro-batches of this epoch that are done.
        body_done: the epoch's batches, and what the loop does behind them, have passed; its
            validation and its end may be left.
        epoch_done: the epoch's end has passed, the next epoch has not started.
        validation_pending: a validation is due at this update and has not been completed.
        skipped: optimizer -> updates skipped for a non-finite loss or norm, since its last good
            one; an optimizer that is alone has the name "".
        skips: updates skipped since the run began.
        events: log events so far, which is the number of the next one.
        metrics: the last value of each metric.
        history: one mapping of metrics per validation or epoch end.
        weights: what a callback has said of the weights that it has put into the model: `detail`,
            `epoch` and `step` of them or None, and `at`, the update behind which it did; or None.
        update: the number that `step` has behind the update under way; not saved, as the next two.
        window: micro-batches of that update that had their backward pass.
        is_last: the micro-batch at hand is the epoch's last.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    body_done: bool = False
    epoch_done: bool = False
    validation_pending: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    skips: int = 0
    events: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] | None = None
    update: int = 0
    window: int = 0
    is_last: bool = False

    @property
    def epochs_done(self) -> int:
        """Epochs whose end has passed."""
        return self.epoch + int(self.epoch_done)

    @property
    def is_mid_epoch(self) -> bool:
        """Whether the loader stands inside an epoch."""
        return self.batch > 0 and not self.epoch_done

    @property
    def boundary(self) -> tuple[int, bool, bool]:
        """What tells two boundaries apart: behind one update there may be several."""
        return (self.step, self.epoch_done, self.validation_pending)

    def updates_in_all(
        self, batches: int | None, batches_per_update: int, epochs: int, most: int | None
    ) -> int | None:
        """Returns the updates of the whole run, those done and those to come.

        Args:
            batches: of each epoch from this one on; None: not known.
            epochs: of the whole run.
            most: updates at which it ends; None: no limit.
        """
        if batches is None:
            return most
        each, done = (-(-count // batches_per_update) for count in (batches, self.batch))
        total = self.step - done + max(epochs - self.epoch, 0) * each
        return total if most is None else min(total, most)

    def start_epoch(self) -> int:
        """Returns the number of the epoch to train: the next one where this is done."""
        if self.epoch_done:
            self.epoch, self.batch = self.epoch + 1, 0
            self.body_done = self.epoch_done = False
        return self.epoch

    def state(self) -> dict[str, Any]:
        """Returns what a snapshot keeps as plain data, independent of this."""
        noted = self.weights
        stands = noted is not None and noted["at"] == self.step
        return {
            "epoch": self.epoch,
            "step": self.step,
            "batch_in_epoch": self.batch,
            "body_done": self.body_done,
            "epoch_done": self.epoch_done,
            "validation_pending": self.validation_pending,
            "skipped_in_a_row": self.skipped.get("", 0),
            "skipped": {name: count for name, count in self.skipped.items() if name},
            "skips": self.skips,
            "events": self.events,
            "metrics": dict(self.metrics),
            "history": [dict(entry) for entry in self.history],
            **({"weights": noted} if stands else {}),
        }

    def load(self, state: Mapping[str, Any] | None = None) -> None:
        """Goes to the place of `state`, or of the beginning; no update is under way there.

        Raises:
            TypeError: the state has something else.
        """
        known = {**(state or {})}
        alone = known.pop("skipped_in_a_row", 0)
        fresh = Position(batch=known.pop("batch_in_epoch", 0), **known)
        fresh.skipped = {**fresh.skipped, **({"": alone} if alone else {})}
        fresh.metrics = dict(fresh.metrics)
        fresh.history = [dict(entry) for entry in fresh.history]
        fresh.update = fresh.step
        self.__dict__.update(fresh.__dict__)
