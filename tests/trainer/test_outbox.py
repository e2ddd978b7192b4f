"""How often a tracker is asked whose server is not there."""

from __future__ import annotations

import time

import pytest

from trainer.testing import make_tiny_trainer
from trainer_callback import TrackerCallback, TrainerCallback


class Absent:
    """Has no server, which it finds out after a while."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.asked = self.failed = 0

    def start(self):
        pass

    def open(self, known):
        self.asked += 1
        time.sleep(self.seconds)
        self.failed += 1
        raise OSError("no answer")

    def close(self):
        pass


class Tracks(TrackerCallback):
    name = "absent"
    client = "json"
    requirement = "json>=1"

    def __init__(self, tracker):
        self.tracker = tracker

    def make_tracker(self, trainer, folder):
        return self.tracker


class Slow(TrainerCallback):
    """Lets no run end before the server was looked for."""

    def __init__(self, tracker):
        self.tracker = tracker

    def on_step_end(self, trainer):
        end = time.monotonic() + 10
        while trainer.step == 3 and not self.tracker.failed and time.monotonic() < end:
            time.sleep(0.01)


def run(tmp_path, *callbacks):
    settings = {"output_dir": tmp_path / "run", "max_steps": 3}
    return make_tiny_trainer(callbacks, **settings).train().exit_code


def test_a_try_that_fails_behind_the_end_was_the_last(tmp_path, caplog):
    tracker = Absent(seconds=1.0)
    assert run(tmp_path, Tracks(tracker)) == 0
    assert tracker.asked == 1
    assert caplog.text.count("not all of it was sent: OSError: no answer") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_what_failed_before_the_end_is_tried_again_at_the_end(tmp_path, seconds):
    tracker = Absent(seconds)
    assert run(tmp_path, Tracks(tracker), Slow(tracker)) == 0
    assert tracker.asked == 2
