"""The history: the whole run in a bounded number of samples, through snapshots too."""

import math
import pickle

import pytest

from trainer_gradient_monitor.history import History, thin
from trainer_gradient_monitor.measurement import COLUMNS, Reading
from trainer_gradient_monitor.state import MonitorState
from trainer_gradient_monitor.verdicts import Verdict


def add(history: History, step: int, *, verdict: Verdict = "healthy") -> None:
    columns = {name: [float(step)] for name in COLUMNS}
    reading = Reading(("a",), columns, float(step), 0, {}, (), None)
    history.add(reading, {"a": verdict}, step=step, epoch=0, skipped=False)


def steps(history: History) -> list[int]:
    return [sample.step for sample in history.samples]


def test_while_there_is_room_every_sample_is_kept() -> None:
    history = History(["a"], 8)
    for step in range(1, 9):
        add(history, step)
    assert steps(history) == list(range(1, 9))


def test_beyond_that_the_samples_cover_the_whole_run_evenly() -> None:
    history = History(["a"], 8)
    for step in range(1, 65):
        add(history, step)
        assert len(history.samples) <= 8
        assert history.samples[-1].step == step
    assert steps(history) == [8, 16, 24, 32, 40, 48, 56, 64]


def test_the_worst_moment_of_a_long_run_is_not_thinned_away() -> None:
    history = History(["a"], 8)
    for step in range(1, 1001):
        add(history, step, verdict="non-finite" if step == 333 else "healthy")
    assert 333 in steps(history)


def test_a_row_without_gradient_has_no_value() -> None:
    history = History(["frozen", "a"], 4)
    add(history, 1)
    assert history.samples[0].column("rms")[1] == 1.0
    assert math.isnan(history.samples[0].column("rms")[0])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_a_history_goes_on_after_a_snapshot_as_if_nothing_had_happened(count: int) -> None:
    whole, first = History(["a"], 8), History(["a"], 8)
    for step in range(1, count + 1):
        add(whole, step)
        add(first, step)
    second = History(["a"], 8)
    second.load_plain(pickle.loads(pickle.dumps(first.to_plain())))
    for step in range(count + 1, count + 50):
        add(whole, step)
        add(second, step)
    assert second.to_plain() == whole.to_plain()


@pytest.mark.parametrize("count", [5, 8, 31, 64])
def test_a_smaller_capacity_thins_what_a_snapshot_holds(count: int) -> None:
    large, small = History(["a"], 64), History(["a"], 4)
    for step in range(1, count + 1):
        add(large, step)
    small.load_plain(large.to_plain())
    for step in range(count + 1, count + 40):
        add(small, step)
        assert len(small.samples) <= 4
    assert small.samples[-1].step == count + 39


def test_thin_keeps_order_ends_and_the_worst() -> None:
    history = History(["a"], 512)
    for step in range(1, 101):
        add(history, step, verdict="exploding" if step == 31 else "healthy")
    thinned = [sample.step for sample in thin(history.samples, 10)]
    assert thinned == [10, 20, 30, 31, 50, 60, 70, 80, 90, 100]
    assert thin([], 10) == []


def test_a_changed_filter_starts_a_new_history_and_keeps_the_counters() -> None:
    old = MonitorState.fresh({"depth": 2}, ("a",), 8)
    add(old.history, 5)
    old.count_update(skipped=True)
    old.count_measured(5, 1)
    same = MonitorState.fresh({"depth": 2}, ("a",), 8)
    assert same.load_plain(old.to_plain())
    assert steps(same.history) == [5]
    for other in (MonitorState.fresh({"depth": 1}, ("a",), 8), MonitorState.fresh({}, ("b",), 8)):
        assert not other.load_plain(old.to_plain())
        assert steps(other.history) == []
        assert (other.updates, other.skipped, other.clipped, other.last_step) == (1, 1, 1, 5)
