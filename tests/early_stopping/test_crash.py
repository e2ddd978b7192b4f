"""The best weights survive kill -9: what is restored may be what the last process never saw."""

import json
import multiprocessing
import runpy
import signal
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).with_name("crashing_run.py")))
BEST_IS_1 = [1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]

pytestmark = pytest.mark.slow


@pytest.fixture
def run(forked, tmp_path):
    """Runs the script until it ends or kills itself; returns what it told, or None."""

    def run(**options):
        told, telling = multiprocessing.Pipe(duplex=False)
        code = forked(SCRIPT["main"], telling, tmp_path, **options)
        assert code == (-signal.SIGKILL if "kill" in options else 0)
        return told.recv() if told.poll() else None

    return run


@pytest.fixture
def epochs(tmp_path):
    """Returns what all processes noted, in order: pid, epoch and digest of its weights."""

    def epochs():
        lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return epochs


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("keep", [1, 9], ids=["its_snapshot_pruned", "its_snapshot_kept"])
def test_after_kill_9_the_best_weights_are_of_an_epoch_the_process_never_saw(
    run, epochs, tmp_path, keep
):
    options = {"losses": BEST_IS_1, "keep": keep, "early": {"patience": 5}}
    run(**options, kill=["on_epoch_end", 3])
    end = run(**options)
    digests = {note["epoch"]: note["digest"] for note in epochs()}
    assert (end["status"], end["reason"], end["best_epoch"]) == ("stopped", "patience", 1)
    assert end["digest"] == digests[1]
    assert end["digest"] != digests[6]
    assert end["tied"]
    assert 1 not in [note["epoch"] for note in epochs() if note["pid"] == end["pid"]]
    assert ("step-00000008" in names_in(tmp_path / "run" / "snapshots")) == (keep == 9)


def test_after_two_kills_they_still_are(run, epochs):
    options = {"losses": BEST_IS_1, "keep": 1, "early": {"patience": 5}}
    run(**options, kill=["on_epoch_end", 3])
    run(**options, kill=["on_snapshot_save", 5])
    end = run(**options)
    assert end["digest"] == next(note["digest"] for note in epochs() if note["epoch"] == 1)
    assert [note["epoch"] for note in epochs()] == [0, 1, 2, 3, 3, 4, 5, 5, 6]


def test_a_stopped_run_restores_them_again_when_it_is_resumed(run):
    options = {"losses": BEST_IS_1, "keep": 1, "early": {"patience": 5}}
    run(**options, kill=["on_epoch_end", 3])
    first, second = run(**options), run(**options)
    assert first["pid"] != second["pid"]
    assert {**first, "pid": 0} == {**second, "pid": 0}


def test_a_kill_while_the_best_file_is_written_leaves_the_best_before(run, epochs, tmp_path):
    options = {"losses": [1.0, 0.5, 0.4, 0.6, 0.7, 0.8], "keep": 1, "early": {"min_delta": 0.05}}
    run(**options, kill=["rename", 2])
    end = run(**{**options, "early": {"min_delta": 0.25}})  # 0.4 is no improvement now
    assert end["digest"] == next(note["digest"] for note in epochs() if note["epoch"] == 1)
    assert names_in(tmp_path / "run" / "weights") == ["early-stopping-step-00000008"]


def test_a_kill_between_a_new_best_and_its_snapshot_leaves_the_best_before(run, epochs, tmp_path):
    losses = [1.0, 0.5, 0.4, 0.6, 0.7, 0.8]
    run(losses=losses, keep=1, early={}, kill=["on_snapshot_save", 2])
    files = ["early-stopping-step-00000008", "early-stopping-step-00000012"]
    assert names_in(tmp_path / "run" / "weights") == files
    end = run(losses=losses, keep=1, early={"min_delta": 0.25})  # 0.4 is no improvement now
    assert (end["best_epoch"], end["best"]) == (1, 0.5)
    assert end["digest"] == next(note["digest"] for note in epochs() if note["epoch"] == 1)


def test_a_kill_between_a_new_best_and_its_snapshot_does_not_lose_it(run, epochs, tmp_path):
    options = {"losses": [1.0, 0.5, 0.4, 0.6, 0.7, 0.8], "keep": 1, "early": {}}
    run(**options, kill=["on_snapshot_save", 2])
    end = run(**options)
    assert (end["best_epoch"], end["status"]) == (2, "finished")
    assert end["digest"] == next(note["digest"] for note in epochs() if note["epoch"] == 2)
    assert names_in(tmp_path / "run" / "weights") == ["early-stopping-step-00000012"]
