"""The arithmetic, on a clock that is set by hand."""

import pytest

from trainer_throughput.stopwatch import Stopwatch, Update, percentile


@pytest.fixture
def watch(clock):
    watch = Stopwatch(window=3, clock=clock.perf_counter)
    watch.end_update()  # the first one, which will be forgotten
    return watch


def play(watch, clock, wait, work, count=1):
    clock.sleep(wait)
    watch.start_batch(count)
    clock.sleep(work)
    watch.end_batch()


def test_a_gap_is_waiting_and_the_rest_is_work(watch, clock):
    watch.start_gap()
    play(watch, clock, wait=2, work=3, count=10)
    play(watch, clock, wait=1, work=4, count=20)
    watch.end_update()
    assert list(watch.recent) == [Update(count=30, work=7, wait=3)]


def test_a_gap_that_was_dropped_does_not_count(watch, clock):
    watch.start_gap()
    play(watch, clock, wait=1, work=1)
    watch.drop_gap()
    watch.restart_gap()
    play(watch, clock, wait=100, work=1)
    watch.end_update()
    assert watch.total == Update(count=2, work=2, wait=1)


def test_a_gap_that_was_restarted_counts_from_there(watch, clock):
    watch.start_gap()
    clock.sleep(100)
    watch.restart_gap()
    play(watch, clock, wait=1, work=1)
    watch.end_update()
    assert watch.total.wait == 1


def test_the_first_update_counts_until_there_is_another(clock):
    watch = Stopwatch(window=3, clock=clock.perf_counter)
    seen = []
    for work in (100, 1, 2):
        watch.drop_gap()
        play(watch, clock, wait=0, work=work)
        watch.end_update()
        seen.append((watch.total.seconds, len(watch.recent)))
    assert seen == [(100, 1), (1, 1), (3, 2)]


def test_the_window_forgets_and_the_total_does_not(watch, clock):
    for work in (1, 2, 3, 4, 5):
        watch.drop_gap()
        play(watch, clock, wait=0, work=work)
        watch.end_update()
    assert [update.work for update in watch.recent] == [3, 4, 5]
    assert watch.total.work == 15


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (90, 90), (99, 99), (100, 100)])
def test_percentiles_of_a_hundred_numbers(percent, expected):
    assert percentile(range(100, 0, -1), percent) == expected


def test_every_percentile_of_one_number_is_that_number():
    assert {percentile([7.0], percent) for percent in (1, 50, 99)} == {7.0}
