"""A tracker in a process of its own, which may hang, fail or be left alone."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from trainer.testing import make_tiny_trainer
from trainer.view import senders
from trainer_callback import PluginError, TrackerCallback, TrackerProcess, tracker_process

NOTEBOOK = '''
import os, subprocess, sys, tempfile, time
from trainer_callback import serve_tracker

LIBRARY = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
time.sleep(0.3)
"""

class Notebook:
    """Writes down what it is asked; hangs, or fails, in one of the calls."""

    def __init__(self, path, hangs, fails, starts):
        self.path, self.hangs, self.fails, self.count = path, hangs, fails, 0
        self.starts = starts
        tempfile.mkdtemp()

    def note(self, what, *more):
        with open(self.path, "a") as file:
            print(what, *more, file=file)
        if what == self.hangs:
            time.sleep(1000)
        if what == self.fails:
            raise OSError(28, "No space left on device")

    def start(self):
        if self.starts:  # in a session of its own, and it takes a moment to end
            words = [sys.executable, "-S", "-E", "-c", LIBRARY, str(os.getpid())]
            subprocess.Popen(words, start_new_session=True)
        self.note("start")

    def open(self, known):
        self.note("open")
        return self.count

    def send(self, records):
        self.note("send")
        for record in records:
            self.note("event", record.event)
        self.count = records[-1].event + 1

    def finish(self, status):
        self.note("finish", status)

    def save_final(self, path):
        self.note("save_final")

    def close(self):
        self.note("close")

serve_tracker(Notebook)
'''


class Notes(TrackerCallback):
    name = "notes"
    client = "json"
    requirement = "json>=1"

    def __init__(self, hangs: str = "", fails: str = "", starts: bool = False) -> None:
        self.faults = {"hangs": hangs, "fails": fails, "starts": starts}

    def make_tracker(self, trainer, folder):
        folder.mkdir(exist_ok=True)
        (folder / "notebook_tracker.py").write_text(NOTEBOOK)
        return TrackerProcess(
            "notebook_tracker",
            {"path": str(folder / "notes.txt"), **self.faults},
            log=folder / "client.log",
            environment={"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for the run, beside one for temporary files, which is to be empty behind it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield tmp_path / "run"
    names = [path.name for path in temporary.iterdir()]
    assert [name for name in names if not name.startswith("torchinductor")] == []  # torch's own
    assert find_processes(tmp_path) == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(senders, "_PATIENCE", 1.0)
    monkeypatch.setattr(tracker_process, "_PATIENCE", 1.0)


def find_processes(folder):
    """The command of each process that has `folder` in its environment, but for this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = str(folder).encode() in (process / "environ").read_bytes()
            if is_ours and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def read_notes(place):
    return (place / "notes" / "notes.txt").read_text().splitlines()


def run(place, **faults):
    return make_tiny_trainer([Notes(**faults)], output_dir=place, max_steps=3).train()


def test_a_tracker_gets_each_event_the_end_and_the_finished_model(place, caplog):
    assert run(place).status == "finished"
    notes = read_notes(place)
    events = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert notes[0] == "start"
    assert [note for note in notes if "event" in note] == [
        f"event {line['_event']}" for line in events if "_event" in line
    ]
    assert notes[-3:] == ["finish finished", "save_final", "close"]
    assert "was not sent" not in caplog.text


@pytest.mark.parametrize("call", ["open", "send", "finish"])
def test_what_hangs_costs_seconds_is_said_and_ends_with_the_run(place, impatient, caplog, call):
    began = time.monotonic()
    result = run(place, hangs=call)
    assert (result.status, result.exit_code) == ("finished", 0)
    assert time.monotonic() - began < 15
    assert caplog.text.count("not all of it was sent") == 1
    assert "save_final" not in read_notes(place)


@pytest.mark.parametrize("faults", [{}, {"fails": "send"}, {"hangs": "send"}])
def test_what_its_process_has_started_is_gone_at_the_end_of_the_run(place, impatient, faults):
    assert run(place, starts=True, **faults).exit_code == 0
    assert find_processes(place.parent) == []


def test_an_upload_of_the_finished_model_that_hangs_ends_with_the_run(place, impatient, caplog):
    began = time.monotonic()
    result = run(place, hangs="save_final")
    assert (result.status, result.exit_code) == ("finished", 0)
    assert time.monotonic() - began < 15
    assert "the finished model was not sent" in caplog.text


def test_a_tracker_that_does_not_close_is_ended_and_that_is_said(place, impatient, caplog):
    assert run(place, hangs="close").exit_code == 0
    assert "not all of it was sent: RuntimeError: its process has ended, or" in caplog.text


@pytest.mark.parametrize("call", ["open", "send", "finish", "close"])
def test_what_fails_is_said_with_its_cause_and_the_run_goes_on(place, caplog, call):
    result = run(place, fails=call)
    assert (result.status, result.exit_code, result.steps) == ("finished", 0, 3)
    assert caplog.text.count("not all of it was sent: RuntimeError: OSError: [Errno 28]") == 1
    assert caplog.text.count("cannot send") <= 1


def test_what_a_tracker_has_is_closed_where_it_cannot_take_the_finished_model(place, caplog):
    run(place, fails="save_final")
    assert "the finished model was not sent: RuntimeError: OSError: [Errno 28]" in caplog.text
    assert read_notes(place)[-1] == "close"


def test_a_tracker_that_fails_at_its_start_refuses_the_run(place, caplog):
    with pytest.raises(PluginError, match="notes: cannot start 'json': OSError"):
        run(place, fails="start")
    assert "was not sent" not in caplog.text


def test_a_tracker_does_not_start_again_once_it_is_closed(place):
    tracker = Notes().make_tracker(None, place.parent)
    tracker.start()
    tracker.close()
    with pytest.raises(RuntimeError, match="closed"):
        tracker.open(0)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("hangs", ["", "send"])
def test_nothing_is_left_of_a_run_that_is_ended_from_outside(place, kill, hangs):
    source = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]}\n"
        "from test_tracker_process import *\n"
        "from trainer_callback import TrainerCallback\n"
        "senders._PATIENCE = 1.0\n"
        "class Slow(TrainerCallback):\n"
        "    def on_step_end(self): time.sleep(0.05)\n"
        f"callbacks = [Notes(hangs={hangs!r}), Slow()]\n"
        f"make_tiny_trainer(callbacks, output_dir={str(place)!r}, epochs=1000).train()\n"
    )
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stderr=subprocess.PIPE
    ) as process:
        notes = place / "notes" / "notes.txt"
        end = time.monotonic() + 60
        while not notes.exists() or "send" not in notes.read_text():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(kill)
        process.communicate()
    end = time.monotonic() + 5
    while find_processes(place.parent) and time.monotonic() < end:
        time.sleep(0.05)
