"""trackio, its own database and reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("trackio.sqlite_storage")

from trainer.testing import CallbackContract
from trainer_trackio import TrackioCallback

from .conftest import Lives, Values, dying_tracker, left_behind

pytestmark = pytest.mark.slow


class Dying(TrackioCallback):
    def make_tracker(self, trainer, folder):
        return dying_tracker(super().make_tracker(trainer, folder))


make, dying = TrackioCallback, Dying

READER = """
import json
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_run_records("trainer")
logs = SQLiteStorage.get_logs("trainer", run_id=run["id"])
config = SQLiteStorage.get_run_config("trainer", run["name"], run_id=run["id"])
artifacts = SQLiteStorage.get_artifacts("trainer")
print(json.dumps({"run": run, "logs": logs, "config": config, "artifacts": artifacts}, default=str))
"""


def prepare(output: Path) -> None:
    pass


def read(output: Path) -> tuple[dict, Values]:
    """The only run with all that trackio's own reader gives, and each value."""
    environment = {"TRACKIO_DIR": f"{output}/trackio", "HOME": str(output)}
    done = subprocess.run([sys.executable, "-c", READER], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout.splitlines()[-1])
    found = Counter()
    for line in answer["logs"]:
        step = line.pop("step")
        line.pop("timestamp")
        numbers = {name: value for name, value in line.items() if not isinstance(value, dict)}
        found.update((name, step, repr(float(value))) for name, value in numbers.items())
    return answer, found


def test_each_value_is_there_as_often_as_in_the_log(lived: Lives):
    answer, found = read(lived.output)
    assert found == lived.logged()
    assert answer["run"]["name"] == "run"


def test_a_run_has_its_settings_its_texts_and_the_finished_model(lives: Lives):
    assert lives.live() == 0
    answer, _ = read(lives.output)
    assert len(answer["run"]["id"]) == 12
    assert answer["config"]["max_steps"] == 12
    texts = [line["sample"]["_value"] for line in answer["logs"] if "sample" in line]
    assert texts == lives.texts()
    assert [each["name"] for each in answer["artifacts"]] == ["run-final"]
    assert left_behind(lives) == []


def test_a_folder_of_ones_own_keeps_several_runs(lives: Lives):
    shared = lives.output.parent / "shared"
    tracker = lambda: TrackioCallback(directory=str(shared), artifacts=False)  # noqa: E731
    assert lives.live(tracker=tracker) == 0
    other = Lives(lives.output.parent / "other", tracker)
    assert other.live() == 0
    assert other.live(resume=other.snapshot(8)) == 0
    done = sorted(path.name for path in shared.glob("*.db"))
    assert done == ["trainer.db"]


class TestContract(CallbackContract):
    entry_point = "trackio"
    flags = ("--trackio_project", "other")
    passive = True

    def make(self):
        return TrackioCallback(artifacts=False)
