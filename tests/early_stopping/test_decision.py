"""Which value is an improvement, and when there is a reason to stop."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from torch import nn

from trainer_early_stopping import EarlyStoppingCallback

INF, NAN = math.inf, math.nan


def test_stops_at_the_check_at_which_the_misses_reach_patience(play):
    outcome = play([1.0, 0.5, 0.6, 0.7, 0.4], patience=2)
    assert outcome.epochs == 4
    assert (outcome.callback.stop_reason, outcome.callback.stopped_epoch) == ("patience", 3)
    assert outcome.callback.wait == 2


def test_an_improvement_ends_a_row_of_misses(play):
    outcome = play([1.0, 1.1, 0.9, 1.0, 0.8, 0.9], patience=2)
    assert outcome.epochs == 6
    assert (outcome.callback.stop_reason, outcome.callback.stopped_epoch) == (None, None)
    assert outcome.callback.wait == 1


def test_the_defaults_are_those_of_the_manual(play):
    outcome = play([1.0, *[2.0] * 9])
    assert (outcome.epochs, outcome.callback.best_epoch) == (6, 0)


def test_a_drop_of_exactly_min_delta_is_no_improvement(play):
    outcome = play([1.0, 0.75, 0.75], patience=2, min_delta=0.25)
    assert (outcome.epochs, outcome.callback.best) == (3, 1.0)
    assert outcome.callback.stop_reason == "patience"


def test_a_drop_of_just_more_than_min_delta_is_one(play):
    outcome = play([1.0, math.nextafter(0.75, 0.0)], patience=1, min_delta=0.25)
    assert outcome.callback.best_epoch == 1


def test_values_compare_in_float64(play):
    last_bit_lower = math.nextafter(1.0, 0.0)  # equal to 1.0 in float32
    outcome = play([1.0, last_bit_lower, 1.0], patience=1)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (last_bit_lower, 1)


def test_best_is_the_last_counted_improvement_and_not_the_running_minimum(play):
    outcome = play([1.0, 0.95, 2.0], patience=5, min_delta=0.1)
    assert outcome.callback.best == 1.0


def test_a_slow_creep_below_min_delta_adds_up(play):
    creep = [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76]
    outcome = play(creep, patience=3, min_delta=0.1)
    assert (outcome.callback.best_epoch, outcome.callback.best) == (6, 0.76)
    assert outcome.callback.stop_reason is None


def test_a_plateau_stops_the_run(play):
    outcome = play([0.5] * 10, patience=4)
    assert (outcome.epochs, outcome.callback.best_epoch) == (5, 0)


def test_the_first_of_tied_epochs_is_best(play):
    outcome = play([1.0, 0.5, 0.5, 0.5], patience=5)
    assert (outcome.callback.best_epoch, outcome.weights_of_epoch) == (1, 1)


def test_a_best_of_zero_is_a_value(play):
    outcome = play([0.0, 0.1, 0.2], patience=2)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (0.0, 0)
    assert outcome.callback.stop_reason == "patience"


def test_negative_values_improve_downwards(play):
    outcome = play([0.0, -1.0, -1.5, -1.25], patience=5, min_delta=0.25)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (-1.5, 2)


def test_nan_is_a_miss_and_changes_nothing_else(play):
    outcome = play([1.0, NAN, 0.9, NAN, NAN], patience=2)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (0.9, 2)
    assert (outcome.epochs, outcome.callback.stop_reason) == (5, "patience")


def test_a_first_nan_is_a_miss_and_the_next_number_becomes_best(play):
    outcome = play([NAN, NAN, 3.0, 4.0], patience=3)
    assert (outcome.callback.best, outcome.callback.best_epoch, outcome.callback.wait) == (
        3.0,
        2,
        1,
    )


def test_nothing_but_nan_is_never_best(play):
    outcome = play([NAN] * 5, patience=3)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (None, None)
    assert (outcome.epochs, outcome.weights_of_epoch) == (3, 2)


@pytest.mark.parametrize("min_delta_mode", ["abs", "rel"])
def test_infinities_compare_as_numbers(play, min_delta_mode):
    outcome = play([INF, INF, 5.0, -INF, -INF, -9.0], patience=9, min_delta_mode=min_delta_mode)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (-INF, 3)
    assert outcome.callback.wait == 2


def test_max_is_the_mirror_of_min(play):
    options = {"patience": 2, "min_delta": 0.25, "mode": "max"}
    outcome = play([1.0, 1.25, math.nextafter(1.25, 2.0), 1.0, 1.5], **options)
    assert (outcome.callback.best_epoch, outcome.epochs) == (2, 5)
    assert outcome.callback.stop_reason == "patience"


def test_rel_takes_min_delta_as_a_share_of_the_best(play):
    options = {"patience": 9, "min_delta": 0.25, "min_delta_mode": "rel"}
    outcome = play([8.0, 6.0, 5.5, 4.125, 4.0], **options)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (4.0, 4)
    assert play([-8.0, -10.0], **options).callback.best == -8.0
    assert play([-8.0, -10.5], **options).callback.best == -10.5
    assert play([0.0, -1e-300], **options).callback.best == -1e-300


def test_epochs_before_start_from_epoch_are_not_compared_not_counted_never_best(play):
    outcome = play([0.1, 0.2, 0.3, 1.0, 1.1, 1.2], patience=2, start_from_epoch=3)
    assert (outcome.callback.best, outcome.callback.best_epoch) == (1.0, 3)
    assert (outcome.epochs, outcome.weights_of_epoch) == (6, 3)


def test_misses_count_but_no_stop_is_asked_for_before_min_epochs(play):
    outcome = play([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], patience=2, min_epochs=6)
    assert (outcome.epochs, outcome.callback.wait) == (6, 5)
    assert (outcome.callback.stop_reason, outcome.callback.stopped_epoch) == ("patience", 5)


def test_an_improvement_before_min_epochs_calls_the_stop_off(play):
    outcome = play([1.0, 2.0, 2.0, 0.5, 0.6, 0.4], patience=2, min_epochs=5)
    assert (outcome.epochs, outcome.callback.stop_reason) == (6, None)


def test_only_a_value_better_than_best_and_baseline_resets_the_count(play):
    outcome = play([1.0, 0.9, 0.4, 0.6, 0.3], patience=3, baseline=0.5)
    assert (outcome.callback.stop_reason, outcome.callback.wait) == (None, 0)
    outcome = play([1.0, 0.9, 0.8, 0.4], patience=3, baseline=0.5)
    assert (outcome.epochs, outcome.callback.stop_reason) == (3, "patience")
    assert (outcome.callback.best, outcome.weights_of_epoch) == (0.8, 2)


def test_stopping_threshold_stops_at_once_when_strictly_better(play):
    outcome = play([1.0, 0.5, math.nextafter(0.5, 0.0), 0.1], stopping_threshold=0.5)
    assert (outcome.epochs, outcome.callback.stop_reason) == (3, "stopping_threshold")
    assert outcome.callback.best_epoch == 2


def test_divergence_threshold_stops_at_once_when_strictly_worse(play):
    outcome = play([1.0, 5.0, math.nextafter(5.0, 6.0), 0.1], divergence_threshold=5.0)
    assert (outcome.epochs, outcome.callback.stop_reason) == (3, "divergence_threshold")
    assert outcome.weights_of_epoch == 0


def test_the_thresholds_are_mirrored_in_mode_max(play):
    options = {"mode": "max", "stopping_threshold": 0.9, "divergence_threshold": 0.1}
    assert play([0.5, 0.9, 0.95], **options).callback.stop_reason == "stopping_threshold"
    assert play([0.5, 0.1, 0.05], **options).callback.stop_reason == "divergence_threshold"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_check_finite_stops_at_once(play, value):
    outcome = play([1.0, value, 0.5], check_finite=True)
    assert (outcome.epochs, outcome.callback.stop_reason) == (2, "non_finite")
    assert (outcome.callback.best, outcome.weights_of_epoch) == (1.0, 0)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_without_check_finite_such_a_value_does_not_stop(play, value):
    assert play([1.0, value, 0.5]).epochs == 3


def test_a_question_that_is_not_asked_changes_nothing():
    asked, unasked = EarlyStoppingCallback(patience=3), EarlyStoppingCallback(patience=3)
    host = SimpleNamespace(model=nn.Linear(1, 1))
    for epoch, loss in enumerate([1.0, 2.0, 0.5, 2.0, 2.0, 2.0]):
        for callback in (asked, unasked):
            callback.on_epoch_end(host, epoch, 1.0, loss, {"val_loss": loss})
        asked.should_stop_training(host)
    assert asdict(unasked.state) == asdict(asked.state)
    assert unasked.should_stop_training(host).reason == "patience"


def test_should_stop_training_only_reads(play):
    outcome = play([1.0, 2.0, 3.0], patience=2)
    before = vars(outcome.callback.state).copy()
    answers = [outcome.callback.should_stop_training(None) for _ in range(5)]
    assert vars(outcome.callback.state) == before
    assert answers == [answers[0]] * 5
    assert answers[0].reason == "patience"
