"""Clauses about what a callback does to a batch, and in every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .batch_watch import BatchWatch, OutputWatch, SyncWatch
from .change_watch import ChangeWatch, KeptWatch, ModeWatch
from .clauses import Clauses
from .runs import build, fail, fresh, train

__all__ = ["BatchClauses"]

_FEW = 4
"""Batches that a callback may keep: the last ones, to show them."""


class BatchClauses(Clauses):
    """A callback lets the batches go by: it neither holds them up nor keeps or changes them."""

    def test_it_does_not_wait_for_the_device_in_every_batch(self, tmp_path: Path) -> None:
        where = self._watch(SyncWatch(), tmp_path).describe()
        if where is not None:
            fail(
                f"it waits for the device {where}, and a GPU idles meanwhile. Keep the tensor, and "
                "read it in on_log, on_validation_end or on_epoch_end."
            )

    def test_it_prints_nothing_in_every_batch(self, tmp_path: Path) -> None:
        where = self._watch(OutputWatch(), tmp_path).describe()
        if where is not None:
            fail(
                f"it prints or logs {where}, and a run has millions. Print in on_log or "
                "on_epoch_end, in the main process, or send a number by trainer.log."
            )

    def test_it_keeps_no_batches(self, tmp_path: Path) -> None:
        watch = KeptWatch()
        train(build([watch, fresh(self.make)], tmp_path / "run", **self._one_epoch()))
        for what, advice in (
            ("batch", "Keep the numbers that you need of it, as floats or a sum on the device"),
            ("graph", "Keep output.detach(), or better a number of it"),
        ):
            if watch.alive[what] > _FEW:
                fail(
                    f"at the end of an epoch the {what} of {watch.alive[what]} of its {watch.seen} "
                    f"batches is still there, and memory runs out. {advice}, not the {what} itself."
                )

    def test_it_changes_no_batch_in_place(self, tmp_path: Path) -> None:
        watch = ChangeWatch()
        train(build([watch, fresh(self.make)], tmp_path / "run", **self._settings()))
        if watch.change is not None and (self.passive or not self.changes_batches):
            fail(
                f"it changes the batch in place ({watch.change}), which the data set may still "
                "hold and other callbacks see. Work on a copy; if to change it is what the "
                "callback is for, say changes_batches = True in this test, and not passive = True."
            )

    def test_it_leaves_the_model_in_its_mode(self, tmp_path: Path) -> None:
        watch = ModeWatch()
        train(build([watch, fresh(self.make)], tmp_path / "run", **self._settings()))
        change = watch.mode or (watch.frozen if self.passive else None)
        if change is not None:
            fail(
                f"{change}. Put back in the same hook what was there before: keep module.training "
                "of each part, or requires_grad, and set it again in a finally."
            )

    def _watch(self, watch: BatchWatch, place: Path) -> BatchWatch:
        train(build([watch, fresh(self.make)], place / "run", **self._one_epoch()))
        return watch

    def _one_epoch(self) -> dict[str, Any]:
        settings = self._settings(epochs=1, batches=16, log_interval=16, eval_interval=None)
        return {**settings, "gradient_accumulation_steps": 1}
