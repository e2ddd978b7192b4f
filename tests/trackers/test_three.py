"""What holds for all three trackers: a full disk, an end from outside, two processes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from trainer_callback import TrainerCallback

from .conftest import At, Lives, die, left_behind, move_home

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CLIENTS = {"mlflow": "mlflow.tracking", "trackio": "trackio.sqlite_storage", "wandb": "wandb.sdk"}
NAMES = [*CLIENTS]


class Nothing(TrainerCallback):
    """Stands where a tracker would."""

    def on_log(self, event: int) -> None:
        pass


def load(name: str) -> ModuleType:
    """The tests of one tracker; skips where its client is not installed."""
    pytest.importorskip(CLIENTS[name])  # the module of tests is half imported then
    return importlib.import_module(f".test_{name}", __package__)


@pytest.fixture(params=NAMES)
def run(request, tmp_path, monkeypatch) -> Lives:
    """A run that has not begun, with one of the trackers."""
    module = load(request.param)
    made = Lives(tmp_path / "run", module.make)
    made.output.mkdir()
    move_home(tmp_path, monkeypatch)
    return made


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_nothing_is_left_of_a_run_that_is_killed_or_interrupted(run: Lives, request):
    load(request.node.callspec.params["run"]).prepare(run.output)
    assert run.live(At("on_batch_end", 5, die)) == -9
    end = time.monotonic() + 10
    while left_behind(run) and time.monotonic() < end:
        time.sleep(0.05)
    assert left_behind(run) == []
    assert run.live(At("on_batch_end", 5, interrupt)) != 0
    assert left_behind(run) == []


def fill(disk: Path) -> None:
    """Leaves no byte of a disk free."""
    with disk.joinpath("filler").open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def test_a_full_disk_is_said_once_and_changes_nothing_of_the_run(run: Lives, request):
    name = request.node.callspec.params["run"]
    other = Lives(run.output.with_name("other"), Nothing)
    assert other.live() == 0
    disk = run.output / name
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a small disk here")
    try:
        load(name).prepare(run.output)
        assert run.live(At("on_batch_end", 1, lambda _: fill(disk))) == 0
    finally:
        is_busy = subprocess.run(["umount", str(disk)], check=False).returncode != 0
        if is_busy:  # of the next session it is not to be the trouble
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert not is_busy
    assert run.said.count("not all of it was sent") == 1, run.said
    assert run.said.count("cannot send") <= 1
    model = Path("final", "model.safetensors")
    assert (run.output / model).read_bytes() == (other.output / model).read_bytes()
    assert run.logged() == other.logged()


TWO = """
import sys
from tests.trackers.conftest import At, Chatter, Lives, die
from tests.trackers.test_three import load
from trainer.testing import make_tiny_trainer
name, output, act = sys.argv[1:]
others = [At("on_batch_end", 6, die)] if act == "die" else []
callbacks = [*others, Chatter(), load(name).make()]
settings = {"max_steps": 12, "epochs": 4, "snapshot_interval": 4}
sys.exit(make_tiny_trainer(callbacks, output_dir=output, **settings).train(resume="auto").exit_code)
"""


@pytest.mark.parametrize("run", ["trackio"], indirect=True)  # which of them, is the core's choice
def test_of_two_processes_the_main_one_talks_and_a_kill_is_mended(run: Lives, request):
    name = request.node.callspec.params["run"]
    load(name).prepare(run.output)
    program = run.output.with_name("two.py")
    program.write_text(TWO)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for act in ("die", "live"):
        done = subprocess.run(
            [*command, str(program), name, str(run.output), act],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (done.returncode == 0) == (act == "live"), done.stderr
    read = load(name).read
    assert read(run.output)[1] == run.logged()
