"""The output directory: unusable, in use, oddly named, moved, somebody else's."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import ConfigError, TrainerConfig
from trainer.snapshots.run_record import RunRecord
from trainer.snapshots.rundir import RunDirectory
from trainer.snapshots.snapshot import list_snapshots
from trainer.writers.metrics_file import read_logged
from trainer_callback import SnapshotError, TrainerCallback, UsageError


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


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a link to nowhere"])
@pytest.mark.parametrize("part", ["metrics.jsonl", "snapshots"])
def test_output_directory_unusable_because_something_else_has_a_name_of_its_own(
    tiny, tmp_path, kind, part
):
    if kind == "a directory" and part == "metrics.jsonl":
        (tmp_path / part).mkdir()
    elif kind == "a link to nowhere":
        (tmp_path / part).symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(tmp_path / part)
    with pytest.raises(ConfigError, match=f"{part}' is in the way"):
        tiny.trainer(tmp_path).train(resume="auto")


def unprivileged(work):
    """Runs `work` as somebody who may not write everywhere; the superuser may."""

    def as_nobody():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return work()

    return as_nobody


@pytest.mark.parametrize("part", [".", "snapshots", "weights", "metrics.jsonl"])
def test_output_directory_unusable_because_a_part_of_it_is_read_only(tiny, tmp_path, part):
    tmp_path.chmod(0o777)
    place = tmp_path / "run"
    for name in (".", "snapshots", "weights"):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name).chmod(0o777)
    for name in ("metrics.jsonl", ".lock"):
        (place / name).touch()
        (place / name).chmod(0o666)
    (place / part).chmod(0o555 if (place / part).is_dir() else 0o444)

    def work():
        with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
            tiny.trainer(place).train(resume="auto")

    assert tiny.child(unprivileged(work)).wait() == 0
    assert list((place / "snapshots").iterdir()) == []


def test_output_directory_unusable_on_a_read_only_disk(tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a disk here")
    try:
        with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
            tiny.trainer(disk / "run").train()
        with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
            tiny.trainer(disk).train()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_snapshots_that_nobody_may_list_are_not_taken_for_none(tiny, tmp_path):
    tmp_path.chmod(0o777)
    place = tmp_path / "run"

    def work():
        tiny.trainer(place, epochs=1).train()
        before = (place / "metrics.jsonl").read_bytes()
        (place / "snapshots").chmod(0o333)
        with pytest.raises(SnapshotError, match=r"cannot be listed, .* Permission denied"):
            tiny.trainer(place, epochs=1).train(resume="auto")
        assert (place / "metrics.jsonl").read_bytes() == before
        (place / "snapshots").chmod(0o777)

    assert tiny.child(unprivileged(work)).wait() == 0


def test_a_lock_that_is_a_link_changes_nobody_elses_file(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(ConfigError, match="symbolic links"):
        tiny.trainer(tmp_path / "run").train()
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_overwrite_cannot_remove_is_named(tiny, tmp_path):
    (tmp_path / "elsewhere" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "snapshots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="snapshots' cannot be removed"):
        tiny.trainer(tmp_path / "run", overwrite=True).train()


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


def test_a_run_that_was_refused_before_its_first_step_leaves_the_directory_free(tiny, tmp_path):
    class Refuses(TrainerCallback):
        def on_train_start(self):
            raise UsageError("val_acuracy is no metric")

    place = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(UsageError, match="val_acuracy"):
            tiny.trainer(place, callbacks=[Refuses()]).train()
    assert tiny.trainer(place).train().status == "finished"
    with pytest.raises(ConfigError, match="holds a run already"):
        tiny.trainer(place).train()


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


@pytest.mark.parametrize(("end", "step"), [({"epochs": 1}, 6), ({"max_steps": 4}, 4)])
def test_a_finished_run_that_is_resumed_writes_its_snapshot_no_second_time(
    tiny, tmp_path, end, step
):
    make_run(tiny, tmp_path, **end)
    file = tmp_path / "snapshots" / f"step-{step:08d}" / "state.pt"
    before = file.stat()
    tiny.trainer(tmp_path, **end).train(resume="auto")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_log_of_a_resume_that_ends_sooner_has_no_line_of_what_came_after(tiny, tmp_path):
    make_run(tiny, tmp_path / "run")
    oldest = list_snapshots(tmp_path / "run" / "snapshots")[-1]
    tiny.trainer(tmp_path / "run", max_steps=15).train(resume=oldest)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "learning_rate" in line]
    assert steps == list(range(1, 16))


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
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").touch()
    (tmp_path / "run" / "snapshots" / ".tmp-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "snapshots" / ".tmp-file").touch()
    assert tiny.child(lambda: tiny.trainer(tmp_path / "run").train(resume=True)).wait() == 0
    assert list((tmp_path / "run").rglob(".tmp-*")) == []
    assert (tmp_path / "elsewhere" / "mine.txt").exists()


def test_options_that_differ_are_shown_and_never_applied(tiny, tmp_path, caplog):
    make_run(tiny, tmp_path / "run", epochs=1)
    caplog.set_level("INFO")
    trainer = tiny.trainer(tmp_path / "run", epochs=2, log_interval=3)
    trainer.train(resume=True)
    lines = [line for line in caplog.messages if " was " in line]
    assert sorted(lines) == [
        "epochs was 1 in the snapshot's run and is 2 from here on.",
        "log_interval was 1 in the snapshot's run and is 3 from here on.",
    ]
    assert trainer.config.log_interval == 3


def test_a_run_is_no_snapshot(tiny, tmp_path):
    make_run(tiny, tmp_path / "run", epochs=1)
    with pytest.raises(SnapshotError, match=r"is a run, not a snapshot\. Its newest one is"):
        tiny.trainer(tmp_path / "new").train(resume=tmp_path / "run")
    with pytest.raises(SnapshotError, match="holds a finished model"):
        tiny.trainer(tmp_path / "new").train(resume=tmp_path / "run" / "final")


@pytest.mark.parametrize("place", ["a\0b", "a\ud800b"])
def test_an_output_directory_that_no_path_can_be_is_refused(place):
    with pytest.raises(ConfigError, match="output_dir must be a path"):
        TrainerConfig(output_dir=place)


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_directory_that_is_gone_in_mid_run_is_made_anew_with_its_lock(tiny, tmp_path, how):
    place = tmp_path / "run"

    class Remove(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 5 and how == "removed":
                shutil.rmtree(place)
            elif trainer.step == 5:
                place.rename(tmp_path / "moved")
            elif trainer.step == 11:
                assert tiny.child(start_another).wait() == 0

    def start_another():
        with pytest.raises(ConfigError, match="is in use by process"):
            tiny.trainer(place).train("auto")

    options = {"snapshot_interval": 1, "snapshot_sync": True}
    trainer = tiny.trainer(place, callbacks=[Remove()], **options)
    assert trainer.train().status == "finished"
    assert RunRecord.read(place).had_snapshot
    assert tiny.trainer(place, epochs=4).train(True).status == "finished"
