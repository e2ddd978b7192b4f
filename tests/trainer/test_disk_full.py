"""Disk full, quota: earlier snapshots stay, one error says what is missing, training goes on."""

import errno
import resource
import signal
import subprocess

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.snapshots.durable import explain, save_bytes
from trainer.snapshots.state_file import load_state
from trainer.snapshots.store import SnapshotStore
from trainer.writers.metrics_file import read_logged
from trainer_callback import SaveError, SnapshotError, TrainerCallback

pytestmark = pytest.mark.any_loop

FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {"val_loss": 0.5}}


def small_disk(path, size="2m"):
    """Mounts a disk of `size` on `path`; skips where nobody may."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if done.returncode:
        pytest.skip("nobody may mount a small disk here; RLIMIT_FSIZE stands in for it")


def test_disk_full(tiny, tmp_path, caplog):
    disk = tmp_path / "disk"
    small_disk(disk)
    try:
        store = SnapshotStore(TrainerConfig(output_dir=disk))
        small, large = {"x": torch.ones(100_000)}, {"x": torch.ones(500_000)}
        told = []
        store.save(1, small, FACTS, told.append, {})
        store.collect(wait=True)
        store.save(2, large, FACTS, told.append, {})
        store.collect(wait=True)
        message = caplog.messages[-1]
        assert "step-00000002" in message
        assert "No space left on device" in message
        assert "2,00" in message  # the bytes it needs
        store.save(3, large, FACTS, told.append, {})
        store.collect(wait=True)
        store.save(4, large, FACTS, told.append, {})
        with pytest.raises(SnapshotError, match="No space left"):
            store.collect(wait=True)
        assert [path.name for path in told] == ["step-00000001"]
        assert [path.name for path in (disk / "snapshots").iterdir()] == ["step-00000001"]
        load_state(disk / "snapshots" / "step-00000001")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_quota_three_failed_saves_in_a_row_end_the_run_with_1(tiny, tmp_path):
    def work():
        trainer = tiny.trainer(tmp_path, snapshot_interval=1)
        limit_files(6_000)  # too little for state.pt, enough for the log
        try:
            trainer.train()
        except SaveError as error:
            (tmp_path / "error").write_text(str(error))
            (tmp_path / "step").write_text(str(trainer.step))
            return 1
        return 0

    assert tiny.child(work).wait() == 1
    message = (tmp_path / "error").read_text()
    assert "File too large. Its largest file has" in message
    assert message.endswith(
        "may have 6,000 (ulimit -f). Raise that limit, or choose another output_dir."
    )
    assert 3 <= int((tmp_path / "step").read_text()) <= 4
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EDQUOT, "needs 5 bytes, more than your quota has left there. Remove files of yours"),
        (errno.EROFS, "Read-only file system. Make it writable again"),
        (errno.EACCES, "Permission denied. Give back the right to write there."),
        (errno.ENOSPC, "are free there. Free some space."),
    ],
)
def test_what_to_do_goes_by_what_is_missing(tmp_path, number, text):
    error = OSError(number, "")
    assert text in explain(tmp_path / "step-00000001", {"a": save_bytes(b"bytes")}, error)


def test_quota_failed_saves_that_are_not_in_a_row_do_not_end_the_run(tiny, tmp_path):
    class Squeeze(tiny.killer):
        def on_step_end(self, trainer, skipped):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (10**9 if trainer.step % 3 == 0 else 6_000, 10**9)
            )

    def work():
        options = {"snapshot_interval": 1, "snapshot_sync": True, "callbacks": [Squeeze()]}
        return tiny.trainer(tmp_path, **options).train().exit_code

    assert tiny.child(work).wait() == 0
    assert tiny.newest_state(tmp_path)["progress"]["step"] == 18


def test_disk_full_once_training_goes_on_and_no_line_of_the_log_is_lost(tiny, tmp_path):
    class Squeeze(tiny.killer):
        def on_step_end(self, trainer, skipped):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (20 if 3 <= trainer.step <= 5 else 10**9, 10**9)
            )

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))
        tiny.trainer(tmp_path / "full", callbacks=[Squeeze()]).train()
        tiny.trainer(tmp_path / "whole", callbacks=[tiny.killer()]).train()

    assert tiny.child(work).wait() == 0
    logs = [read_logged(tmp_path / name / "metrics.jsonl") for name in ("full", "whole")]
    assert logs[0] == logs[1]


def test_disk_full_to_the_end_leaves_whole_lines_in_the_log(tiny, tmp_path):
    class Fill(TrainerCallback):
        def on_train_start(self, trainer):
            limit_files(150)  # the second line does not fit

    def work():
        options = {"epochs": 1, "snapshot_interval": None, "callbacks": [Fill()]}
        with pytest.raises(SaveError):
            tiny.trainer(tmp_path, **options).train()

    assert tiny.child(work).wait() == 0
    log = (tmp_path / "metrics.jsonl").read_text()
    assert 0 < len(log) < 150
    assert log.endswith("}\n")


def test_disk_full_of_the_log_alone_and_a_kill_lose_no_line(tiny, tmp_path):
    class Talks(tiny.killer):
        def on_step_end(self, trainer, skipped):
            trainer.log({"x" * 500: trainer.step})
            self.strike()

    def work(place, at=None):
        tiny.trainer(tmp_path / place, callbacks=[Talks(at)], snapshot_sync=True).train("auto")

    disk = tmp_path / "disk"
    small_disk(disk, "4k")
    try:
        (tmp_path / "run").mkdir()
        (disk / "log").touch()
        (tmp_path / "run" / "metrics.jsonl").symlink_to(disk / "log")
        assert tiny.child(lambda: work("run", 60)).wait() == -signal.SIGKILL
        assert (disk / "log").stat().st_size <= 4096
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert tiny.child(lambda: work("run")).wait() == 0
        assert tiny.child(lambda: work("whole")).wait() == 0
        logs = [read_logged(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
        assert logs[0] == logs[1]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
