"""Costs: whose time it was, and how much of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from trainer import Trainer
from trainer_callback import TrainerCallback, hookimpl
from trainer_callback.calls.costs import SAMPLE_EVERY, CostMeter
from trainer_callback.calls.manager import CallbackManager


def play(manager: CallbackManager, updates: int, seconds: float = 0.0) -> None:
    for _ in range(updates):
        manager.start_update()
        manager.hook.on_step_end(trainer=None, skipped=False)
        manager.ask_stop(trainer=None)
        time.sleep(seconds)


class Counts(TrainerCallback):
    def on_step_end(self):
        pass

    def on_epoch_start(self):
        pass

    def should_stop_training(self):
        return None


def test_calls_of_batch_hooks_are_scaled_up_from_the_sample() -> None:
    manager = CallbackManager([Counts()])
    play(manager, 1 + 10 * SAMPLE_EVERY)
    costs = manager.costs()["Counts"]
    assert costs["on_step_end"]["calls"] == pytest.approx(1 + 10 * SAMPLE_EVERY)
    assert costs["should_stop_training"]["calls"] == pytest.approx(1 + 10 * SAMPLE_EVERY)
    assert 0 < costs["on_step_end"]["seconds"] < 1


def test_hooks_of_the_epoch_are_counted_exactly() -> None:
    manager = CallbackManager([Counts()])
    for _ in range(3):
        play(manager, 50)
        manager.hook.on_epoch_start(trainer=None, epoch=0)
    assert manager.costs()["Counts"]["on_epoch_start"]["calls"] == 3


def test_a_wrapper_costs_its_own_time_and_not_that_of_the_others() -> None:
    class Slow(TrainerCallback):
        def on_epoch_start(self):
            time.sleep(0.2)

    class Around(TrainerCallback):
        @hookimpl(wrapper=True)
        def on_epoch_start(self):
            time.sleep(0.02)
            yield
            time.sleep(0.02)

    manager = CallbackManager([Slow(), Around()])
    manager.hook.on_epoch_start(trainer=None, epoch=0)
    cost = manager.costs()["Around"]["on_epoch_start"]
    assert cost["calls"] == 1
    assert 0.04 <= cost["seconds"] < manager.costs()["Slow"]["on_epoch_start"]["seconds"]


def test_what_a_callback_does_once_in_the_first_update_is_not_scaled_up() -> None:
    class Slow(TrainerCallback):
        first = True

        def on_step_end(self):
            if self.first:
                time.sleep(0.05)
            self.first = False

    manager = CallbackManager([Slow()])
    play(manager, 100)
    assert 0.05 <= manager.costs()["Slow"]["on_step_end"]["seconds"] < 0.1


def test_a_run_shorter_than_the_sample_has_costs_too() -> None:
    manager = CallbackManager([Counts()])
    play(manager, 1)
    assert manager.costs()["Counts"]["on_step_end"]["calls"] == 1
    play(manager, 2)
    assert manager.costs()["Counts"]["on_step_end"]["calls"] == 3


def test_a_run_reports_the_costs_of_its_callbacks(make_trainer: Callable[..., Trainer]) -> None:
    result = make_trainer(Counts(), writes=False).train()
    assert result.callback_costs["Counts"]["on_epoch_start"]["calls"] == 2
    assert result.callback_costs["Counts"]["on_step_end"]["calls"] == 4


def test_a_callback_above_a_twentieth_of_the_time_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(TrainerCallback):
        def on_step_end(self):
            time.sleep(0.0005)

    with caplog.at_level(logging.WARNING):
        play(CallbackManager([Slow(), Counts()]), 12 * SAMPLE_EVERY, seconds=0.0002)
    assert [record.message.split(" %")[0][:10] for record in caplog.records] == ["Slow takes"]


def test_a_meter_without_updates_has_no_costs() -> None:
    assert CostMeter().totals() == {}
