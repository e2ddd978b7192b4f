"""Callbacks that are right in a `trainer.Trainer`, and wrong in every other trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.testing import CallbackContract
from trainer.testing.runner import run_clauses
from trainer_callback import StopRequest, TrainerCallback

CLAUSE = "test_it_decides_in_other_trainers_as_here"
AT_HOME = (
    "test_a_killed_run_goes_on_as_if_nothing_had_happened",
    "test_it_survives_a_run_of_one_batch",
)


class ReadsConfig(TrainerCallback):
    """Ends the run behind its second snapshot, as the settings of a `Trainer` say."""

    def should_stop_training(self, trainer: Any) -> StopRequest | None:
        every = trainer.config.snapshot_interval if trainer.config.snapshot_sync else None
        return StopRequest("saved") if every and trainer.step >= 2 * every else None


class FailsElsewhere(TrainerCallback):
    """Looks for what a `Trainer` alone has in its output directory."""

    def on_snapshot_saved(self, trainer: Any) -> None:  # type: ignore[override]
        assert list((trainer.output_dir / "snapshots").iterdir())


class KeepsInSnapshots(TrainerCallback):
    """Counts updates, and keeps the number in the folder of a snapshot."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: Any, resumed: bool) -> None:
        self.count = 0
        if resumed and trainer.output_dir is not None:
            files = trainer.output_dir.glob("snapshots/*/count.txt")
            self.count = max((int(file.read_text()) for file in files), default=0)

    def on_step_end(self) -> None:  # type: ignore[override]
        self.count += 1

    def on_snapshot_saved(self, path: Path, step: int) -> None:  # type: ignore[override]
        if path.is_dir():
            (path / "count.txt").write_text(str(step))


class Refuses(TrainerCallback):
    """Keeps a snapshot, which is a `Trainer`'s alone."""

    def on_snapshot_saved(self, trainer: Any, path: Path) -> None:  # type: ignore[override]
        with trainer.hold_snapshot(path):
            pass


def check(make: Any, place: Path, clause: str = CLAUSE) -> Any:
    """Returns what the contract says of the callback in one clause."""

    class Contract(CallbackContract):
        def make(self) -> Any:
            return make()

    (found,) = run_clauses(Contract, place, only=[clause])
    return found
