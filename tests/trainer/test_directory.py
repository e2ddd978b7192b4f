"""The output directory: unusable, in use, oddly named, moved, somebody else's."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import ConfigError
from trainer.metrics_file import read_logged
from trainer.rundir import RunDirectory
from trainer.snapshot import list_snapshots
from trainer_callback import SnapshotError, TrainerCallback


@pytest.mark.parametrize("where", ["a file", "below a file", "proc", "path too long", "a part"])
def test_output_directory_unusable(tiny, tmp_path, where):
    (tmp_path / "file").touch()
    place = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
        "proc": Path("/proc/run"),
        "path too long": tmp_path / ("x" * 300),
        "a part": tmp_path / "run",
    }[where]
    if where == "a part":
        place.mkdir()
        (place / "snapshots").touch()
    steps = []

    class Count(TrainerCallback):
        def on_train_start(self, trainer):
            steps.append(1)

    with pytest.raises(ConfigError, match="output_dir"):
        tiny.trainer(place, callbacks=[Count()]).train(resume="auto")
    assert steps == []


NAMES = [
    "with a space",
    "Prüfung",
    "训练",
    "🚂",
    "new\nline",
    "-leading-dash",
    "x" * 200,
    "quote'\"$;%s{}",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(tiny, tmp_path, name):
    def work(*callbacks):
        tiny.trainer(tmp_path / name, callbacks=callbacks, epochs=1).train(resume="auto")

    assert tiny.child(lambda: work(tiny.killer(20))).wait() == -signal.SIGKILL
    assert tiny.child(lambda: work()).wait() == 0
    assert tiny.newest_state(tmp_path / name)["progress"]["step"] == 6


CHILD = """
import os, signal, sys, torch, logging
from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
logging.basicConfig(level=logging.INFO)
class Kill(TrainerCallback):
    def on_step_end(self, trainer):
        if trainer.step == 5 and sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
model = torch.nn.Linear(4, 1)
config = TrainerConfig(epochs=2, output_dir="Prüfung 训练 🚂", snapshot_interval=2)
Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), [torch.ones(2, 4)] * 4,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=config, callbacks=[Kill()], discover=False).train(resume="auto")
"""


def test_odd_names_where_the_locale_knows_ascii_only(tmp_path):
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONWARNINGS": "error"}

    def run(argument):
        command = [sys.executable, "child.py", argument]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)

    assert run("kill").returncode == -signal.SIGKILL
    done = run("end")
    assert done.returncode == 0, done.stderr
    assert b"resumed from" in done.stderr


def test_two_runs_in_one_directory(tiny, tmp_path):
    class Wait(TrainerCallback):
        def on_train_start(self, trainer):
            (tmp_path / "started").touch()
            time.sleep(60)

    first = tiny.child(lambda: tiny.trainer(tmp_path / "run", callbacks=[Wait()]).train())
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    with pytest.raises(ConfigError) as caught:
        tiny.trainer(tmp_path / "run").train(resume="auto")
    assert f"process {first.pid} on {socket.gethostname()}" in str(caught.value)
    first.send(signal.SIGKILL)
    first.wait()
    with RunDirectory(tmp_path / "run"):
        pass


def test_kill_9_leaves_no_stale_lock_even_while_workers_live_on(tiny, tmp_path):
    class Kill(TrainerCallback):
        def on_step_end(self, trainer):
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        tiny.trainer(tmp_path, workers=2, callbacks=[Kill()]).train()

    assert tiny.child(work).wait() == -signal.SIGKILL
    with RunDirectory(tmp_path):
        pass


def make_run(tiny, place, **options):
    assert tiny.child(lambda: tiny.trainer(place, **options).train()).wait() == 0


def test_a_directory_that_holds_a_run_is_refused_without_resume_or_overwrite(tiny, tmp_path):
    make_run(tiny, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="holds a run already"):
        tiny.trainer(tmp_path / "run").train()
    make_run(tiny, tmp_path / "run", epochs=1, overwrite=True)
    assert (tmp_path / "run" / "mine.txt").exists()
    assert len(read_logged(tmp_path / "run" / "metrics.jsonl")) == 7


@pytest.mark.parametrize("resume", [True, "nowhere", "damaged"])
def test_a_refused_resume_makes_no_directory(tiny, tmp_path, resume):
    if resume == "damaged":
        make_run(tiny, tmp_path / "other", epochs=1)
        resume = list_snapshots(tmp_path / "other" / "snapshots")[0]
        (resume / "state.pt").write_bytes(b"x")
    elif resume == "nowhere":
        resume = tmp_path / "nowhere"
    with pytest.raises((ConfigError, SnapshotError)):
        tiny.trainer(tmp_path / "run").train(resume=resume)
    assert not (tmp_path / "run").exists()


def test_a_resume_from_elsewhere_overwrites_no_other_run(tiny, tmp_path):
    make_run(tiny, tmp_path / "one", epochs=1)
    make_run(tiny, tmp_path / "two", epochs=1)
    before = (tmp_path / "two" / "metrics.jsonl").read_bytes()
    path = list_snapshots(tmp_path / "one" / "snapshots")[0]
    with pytest.raises(ConfigError, match="holds a run already"):
        tiny.trainer(tmp_path / "two").train(resume=path)
    assert (tmp_path / "two" / "metrics.jsonl").read_bytes() == before


def test_a_named_snapshot_of_the_same_run_drops_what_came_after_it(tiny, tmp_path):
    make_run(tiny, tmp_path / "run")
    whole = tiny.newest_state(tmp_path / "run")
    oldest = list_snapshots(tmp_path / "run" / "snapshots")[-1]

    def work():
        tiny.trainer(tmp_path / "run").train(resume=oldest)

    assert tiny.child(work).wait() == 0
    assert tiny.difference(whole, tiny.newest_state(tmp_path / "run")) is None
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().count('"learning_rate"')
    assert steps == 18


def test_a_moved_directory_resumes(tiny, tmp_path):
    make_run(tiny, tmp_path / "whole", epochs=3)
    child = tiny.child(lambda: tiny.trainer(tmp_path / "run", callbacks=[tiny.killer(50)]).train())
    assert child.wait() == -signal.SIGKILL
    (tmp_path / "run").rename(tmp_path / "moved")
    assert tiny.child(lambda: tiny.trainer(tmp_path / "moved").train(resume=True)).wait() == 0
    for name in ("state.pt", "manifest.json"):
        for path in (tmp_path / "moved").rglob(name):
            assert str(tmp_path).encode() not in path.read_bytes()
    found = tiny.newest_state(tmp_path / "moved")
    assert tiny.difference(tiny.newest_state(tmp_path / "whole"), found) is None


def test_leftovers_are_removed_at_the_next_start(tiny, tmp_path):
    make_run(tiny, tmp_path / "run", epochs=1)
    for name in ("snapshots/.tmp-step-00000009", "weights/.tmp-best", ".tmp-final"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert tiny.child(lambda: tiny.trainer(tmp_path / "run").train(resume=True)).wait() == 0
    assert list((tmp_path / "run").rglob(".tmp-*")) == []


def test_options_that_differ_are_shown_and_never_applied(tiny, tmp_path, caplog):
    make_run(tiny, tmp_path / "run", epochs=1)
    caplog.set_level("INFO")
    trainer = tiny.trainer(tmp_path / "run", epochs=2, log_interval=3)
    trainer.train(resume=True)
    lines = [line for line in caplog.messages if " was " in line]
    assert sorted(lines) == [
        "epochs was 1 in the snapshot's run and is 2.",
        "log_interval was 1 in the snapshot's run and is 3.",
    ]
    assert trainer.config.log_interval == 3


def test_a_run_is_no_snapshot(tiny, tmp_path):
    make_run(tiny, tmp_path / "run", epochs=1)
    with pytest.raises(SnapshotError, match=r"is a run, not a snapshot\. Its newest one is"):
        tiny.trainer(tmp_path / "new").train(resume=tmp_path / "run")
    with pytest.raises(SnapshotError, match="holds a finished model"):
        tiny.trainer(tmp_path / "new").train(resume=tmp_path / "run" / "final")
