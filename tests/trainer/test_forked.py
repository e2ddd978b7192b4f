"""A process that a callback forks off a run: it must not write the run's files."""

import json
import os

import pytest

from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import TrainerCallback


def run_child(work, errors):
    """Forks; the child does `work`, and writes what it raises."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        work()
    except BaseException as error:
        errors.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def test_what_is_forked_off_cannot_write_weights(tiny, tmp_path):
    errors = tmp_path / "errors"

    class Forks(TrainerCallback):
        def on_epoch_end(self, trainer):
            run_child(lambda: trainer.save_weights("mine"), errors)

    tiny.trainer(tmp_path / "run", callbacks=[Forks()], epochs=1).train()
    assert errors.read_text().startswith("RuntimeError: this is another process than that of the")
    assert not (tmp_path / "run" / "weights").exists()


@pytest.mark.parametrize("log_interval", [1, 1000])
def test_a_child_that_goes_on_with_the_run_is_stopped_and_leaves_its_files(
    tiny, tmp_path, log_interval
):
    errors, parent = tmp_path / "errors", os.getpid()

    class Forks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3 and os.fork() == 0:
                self.child = True
            elif trainer.step == 3:
                os.wait()

    options = {"epochs": 1, "snapshot_interval": 1, "log_interval": log_interval}
    try:
        tiny.trainer(tmp_path / "run", callbacks=[Forks()], **options).train()
    except BaseException as error:
        if os.getpid() == parent:
            raise
        errors.write_text(f"{type(error).__name__}: {error}")
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert errors.read_text().startswith("RuntimeError: this is another process than that of the")
    assert list_snapshots(tmp_path / "run" / "snapshots")[0].name == "step-00000006"
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
