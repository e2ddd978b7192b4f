"""`trainer.hold_snapshot`: what somebody reads is not removed, and what is read no more is."""

import threading

import pytest

from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import SnapshotError, TrainerCallback


def names(place):
    return [path.name for path in list_snapshots(place / "snapshots")]


class Holds(TrainerCallback):
    """Holds the first snapshot until some update."""

    def __init__(self, until=None, times=1):
        self.until, self.times, self.holds = until, times, []

    def on_snapshot_saved(self, trainer, path, step):
        if step == 2:
            self.holds = [trainer.hold_snapshot(path) for _ in range(self.times)]

    def on_epoch_start(self, trainer, epoch):
        self.at_epochs = [*getattr(self, "at_epochs", ()), names(trainer.output_dir)]

    def on_batch_start(self, trainer):
        while self.holds and trainer.step == self.until:
            with self.holds.pop() as path:
                assert path.exists()


def test_a_snapshot_stays_while_it_is_held_and_goes_when_it_is_not(tiny, tmp_path):
    holds = Holds(until=9, times=2)
    tiny.trainer(
        tmp_path, callbacks=[holds], keep_snapshots=1, snapshot_sync=True, epochs=2
    ).train()
    assert holds.at_epochs[1] == ["step-00000006", "step-00000002"]
    assert names(tmp_path) == ["step-00000012"]


def test_retention_catches_up_where_a_snapshot_is_given_back(tiny, tmp_path):
    class Asks(Holds):
        def on_batch_end(self, trainer):
            if trainer.step == 9:
                self.left = names(trainer.output_dir)

    asks = Asks(until=8)
    tiny.trainer(tmp_path, callbacks=[asks], keep_snapshots=1, snapshot_sync=True, epochs=2).train()
    assert asks.left == ["step-00000008"]


def test_what_is_held_at_the_end_is_removed_by_the_next_resume(tiny, tmp_path):
    holds = Holds()
    settings = {"keep_snapshots": 1, "snapshot_sync": True}
    tiny.trainer(tmp_path, callbacks=[holds], epochs=2, **settings).train()
    assert names(tmp_path) == ["step-00000012", "step-00000002"]
    holds.holds.pop().__exit__(None, None, None)  # the run has given its directory back
    assert names(tmp_path) == ["step-00000012", "step-00000002"]
    tiny.trainer(tmp_path, epochs=2, **settings).train(resume=True)
    assert names(tmp_path) == ["step-00000012"]


def test_one_that_is_dropped_without_use_holds_nothing(tiny, tmp_path):
    class Drops(Holds):
        def on_snapshot_saved(self, trainer, path, step):
            trainer.hold_snapshot(path)

    tiny.trainer(tmp_path, callbacks=[Drops()], keep_snapshots=1, epochs=2).train()
    assert names(tmp_path) == ["step-00000012"]


def test_a_job_in_the_background_may_hold_one(tiny, tmp_path):
    seen, gate = [], threading.Event()

    class Uploads(TrainerCallback):
        def on_snapshot_saved(self, trainer, path):
            assert trainer.submit(self, self.upload, trainer.hold_snapshot(path))

        def upload(self, hold):
            with hold as path:
                gate.wait(20)
                seen.append((path / "state.pt").exists())

        def on_train_end(self):
            gate.set()

    tiny.trainer(
        tmp_path, callbacks=[Uploads()], keep_snapshots=1, snapshot_sync=True, epochs=2
    ).train()
    assert seen == [True] * len(seen)
    assert len(seen) > 4
    assert names(tmp_path) == ["step-00000012"]


def test_what_cannot_be_held_is_refused(tiny, tmp_path):
    tiny.trainer(tmp_path / "other", max_steps=2).train()

    class Asks(TrainerCallback):
        def on_train_end(self, trainer):
            gone = trainer.output_dir / "snapshots" / "step-00000002"
            elsewhere = tmp_path / "other/snapshots/step-00000002"
            for path, words in (
                (gone, "is gone: 1 newer snapshots are durable. Hold it in on_snapshot_saved,"),
                (elsewhere, "is no snapshot of this run, whose snapshots are in "),
                (trainer.output_dir / "final", "is no snapshot of this run"),
            ):
                with pytest.raises(SnapshotError) as caught:
                    trainer.hold_snapshot(path)
                assert words in str(caught.value)

    tiny.trainer(tmp_path / "run", callbacks=[Asks()], keep_snapshots=1).train()


def test_other_processes_than_the_main_one_cannot_hold(tiny, tmp_path):
    class Asks(TrainerCallback):
        def on_train_start(self, trainer):
            if not trainer.is_main_process:
                with pytest.raises(RuntimeError, match="the main process alone keeps and removes"):
                    trainer.hold_snapshot(tmp_path)

    def work(rank):
        tiny.trainer(tmp_path, callbacks=[Asks()], max_steps=2, val=False).train()

    assert tiny.run_ranks(work) == [0, 0]
