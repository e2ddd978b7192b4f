"""`trainer.run_id` and `trainer.run_name`: which run this is, after kills and resumes too."""

import json
import re
import shutil
import signal

import pytest

from trainer import ConfigError, TrainerConfig
from trainer_callback import TrainerCallback


class Asks(TrainerCallback):
    """Keeps the id that the first hook sees."""

    def on_snapshot_load(self, trainer):
        self.id = trainer.run_id

    def on_train_start(self, trainer, resumed):
        self.id = self.id if resumed else trainer.run_id
        self.name = trainer.run_name


@pytest.fixture
def start(tiny):
    def run(place, resume=False, **settings):
        asks = Asks()
        settings = {"max_steps": 2, **({} if place else {"snapshot_interval": None}), **settings}
        tiny.trainer(place, callbacks=[asks], **settings).train(resume)
        return asks.id

    return run


def test_a_run_keeps_its_id_over_resumes_and_another_has_another(start, tmp_path):
    first = start(tmp_path / "a")
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert start(tmp_path / "a", True, max_steps=4) == first
    assert start(tmp_path / "a", "auto", max_steps=6) == first
    assert start(tmp_path / "a", tmp_path / "a/snapshots/step-00000004", max_steps=8) == first
    assert start(tmp_path / "b") != first
    assert start(None) != start(None)


def test_an_id_is_kept_before_the_first_hook_is_called(tiny, start, tmp_path):
    child = tiny.child(lambda: tiny.trainer(tmp_path, callbacks=[tiny.killer(1)]).train())
    assert child.wait() == -signal.SIGKILL
    saved = json.loads((tmp_path / ".run.json").read_bytes())["run_id"]
    assert start(tmp_path, "auto") == saved


def test_a_new_start_after_a_kill_has_a_new_id(tiny, start, tmp_path):
    child = tiny.child(lambda: tiny.trainer(tmp_path, callbacks=[tiny.killer(1)]).train())
    assert child.wait() == -signal.SIGKILL
    saved = json.loads((tmp_path / ".run.json").read_bytes())["run_id"]
    assert start(tmp_path) != saved


def test_a_run_that_replaces_another_has_a_new_id(start, tmp_path):
    assert start(tmp_path) != start(tmp_path, overwrite=True)


def test_a_resume_into_another_directory_begins_a_new_run(start, tmp_path):
    first = start(tmp_path / "a")
    snapshot = tmp_path / "a/snapshots/step-00000002"
    assert start(tmp_path / "b", snapshot, max_steps=4) != first
    assert start(tmp_path / "a", True, max_steps=4) == first


def test_a_copy_of_a_directory_has_the_id_of_the_original(start, tmp_path):
    first = start(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert start(tmp_path / "b", True, max_steps=4) == first


def test_a_directory_of_an_older_version_gets_an_id_that_it_keeps(start, tmp_path):
    start(tmp_path)
    (tmp_path / ".run.json").unlink()
    first = start(tmp_path, True, max_steps=4)
    assert start(tmp_path, True, max_steps=6) == first


@pytest.mark.parametrize("place", ["run", None])
def test_all_processes_have_one_id(tiny, tmp_path, place):
    def work(rank):
        asks = Asks()
        settings = {} if place else {"snapshot_interval": None}
        run = place and tmp_path / place
        tiny.trainer(run, callbacks=[asks], max_steps=2, val=False, **settings).train()
        (tmp_path / f"id-{rank}").write_text(asks.id)

    assert tiny.run_ranks(work) == [0, 0]
    ids = [(tmp_path / f"id-{rank}").read_text() for rank in (0, 1)]
    assert ids[0] == ids[1] != ""


def test_the_name_is_the_setting_or_the_directory_or_the_id(tiny, tmp_path):
    def name(place, **settings):
        asks = Asks()
        settings = {**({} if place else {"snapshot_interval": None}), **settings}
        tiny.trainer(place, callbacks=[asks], max_steps=2, **settings).train("auto")
        return asks.name, asks.id

    assert name(tmp_path / "first try")[0] == "first try"
    assert name(tmp_path / "b", run_name="Best, so far")[0] == "Best, so far"
    found, run_id = name(None)
    assert found == run_id


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", 3])
def test_a_name_that_is_no_line_is_refused(name):
    with pytest.raises(ConfigError, match="run_name must be one line of text that is not empty"):
        TrainerConfig(run_name=name)
