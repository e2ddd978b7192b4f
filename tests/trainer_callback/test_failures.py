"""What happens when a callback raises, in a real run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer import Trainer
from trainer_callback import (
    HOOKS,
    CallbackError,
    PluginError,
    TrainerCallback,
    UsageError,
    hookimpl,
)
from trainer_callback.calls.manager import CallbackManager, Plugin
from trainer_callback.hookspecs import SPECS

RUN_HOOKS = [hook for hook in HOOKS if not SPECS[hook].set_up]
NOT_FRESH = ("on_snapshot_search", "on_snapshot_load", "on_exception")
DURING = [hook for hook in RUN_HOOKS if hook not in NOT_FRESH]


ENDS = {"on_train_end": ["on_train_end"], "on_final_saved": ["on_train_end"]}
"""Hooks whose run has ended already, and is told of the end once."""

WRITING = [hook for hook in DURING if "snapshot" in hook or hook == "on_final_saved"]


class Odd(BaseException):
    """No Exception, and none of the known ones."""


def make_faulty(hook: str, error: BaseException, **attributes: Any) -> TrainerCallback:
    def fails(self):
        raise error

    return type("Faulty", (TrainerCallback,), {hook: fails, **attributes})()


def place(position: str, faulty: object, recorder: Any) -> tuple[list[object], list[Any]]:
    """Two recorders with `faulty` first, in the middle, or last."""
    neighbours = [recorder("one"), recorder("two")]
    callbacks: list[object] = [*neighbours]
    callbacks.insert({"first": 0, "middle": 1, "last": 2}[position], faulty)
    return callbacks, neighbours


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit, StopIteration, GeneratorExit, Odd])
@pytest.mark.parametrize("hook", DURING)
def test_plugin_misbehaves_so_the_run_ends_and_the_neighbours_hear_of_everything(
    make_trainer: Callable[..., Trainer], recorder: Any, hook: str, error: Any, position: str
) -> None:
    original = error("why")
    faulty = Plugin(make_faulty(hook, original), "faulty", "dist-faulty", "1.2")
    callbacks, neighbours = place(position, faulty, recorder)
    results = []
    with pytest.raises(CallbackError) as caught:
        make_trainer(*callbacks, Listener(results), writes=hook in WRITING).train()
    assert str(caught.value) == (
        f"faulty (dist-faulty 1.2) failed in {hook}: {error.__name__}: why"
    )
    assert caught.value.__cause__ is original
    assert traceback.extract_tb(original.__traceback__)[-1].name == "fails"
    for neighbour in neighbours:
        assert hook in neighbour.calls
        assert end_of(neighbour) == ENDS.get(hook, ["on_exception", "on_train_end"])
    assert [result.status for result in results] == (["finished"] if hook in ENDS else ["failed"])


def end_of(recorder: Any) -> list[str]:
    """The hooks of the end that were called; a snapshot may become durable between them."""
    return [call for call in recorder.calls if call in ("on_exception", "on_train_end")]


class Listener(TrainerCallback):
    """Sends a text, and keeps what it is told at the end."""

    def __init__(self, results: list[Any]) -> None:
        self.results = results

    def on_epoch_end(self, trainer):
        trainer.log_text("note", "an epoch is over")

    def on_train_end(self, result):
        self.results.append(result)


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("hook", DURING)
def test_ctrl_c_in_a_hook_is_the_users(
    make_trainer: Callable[..., Trainer], recorder: Any, hook: str, position: str
) -> None:
    callbacks, neighbours = place(position, make_faulty(hook, KeyboardInterrupt()), recorder)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(*callbacks, Listener([]), writes=hook in WRITING).train()
    if hook not in ENDS:
        assert all(end_of(each) == ["on_exception", "on_train_end"] for each in neighbours)


def test_a_failure_before_ctrl_c_is_told_and_does_not_come_back_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Interrupts(TrainerCallback):
        def on_log(self):
            raise KeyboardInterrupt

    manager = CallbackManager([make_faulty("on_log", OSError("first")), Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        manager.hook.on_log(trainer=None, metrics={}, step=0, event=0, time=0.0)
    assert "Faulty (not installed) failed in on_log" in caplog.text
    manager.finish()


@pytest.mark.parametrize("error", [RuntimeError("why"), SystemExit(0), StopIteration()])
@pytest.mark.parametrize("hook", DURING)
def test_a_callback_that_is_not_critical_is_switched_off_and_changes_no_bit(
    make_trainer: Callable[..., Trainer],
    caplog: pytest.LogCaptureFixture,
    hook: str,
    error: BaseException,
) -> None:
    faulty = make_faulty(hook, error, critical=False)
    without = make_trainer(writes=False)
    without.train()
    trainer = make_trainer(faulty, Listener([]), writes=hook in WRITING)
    result = trainer.train()
    assert result.status == "finished"
    assert result.switched_off == ("Faulty",)
    assert sum("switched off" in record.message for record in caplog.records) == 1
    for ours, theirs in zip(trainer.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_callback_that_is_switched_off_is_called_no_more_not_even_in_the_same_update() -> None:
    calls = []

    class Faulty(TrainerCallback):
        critical = False

        def on_batch_start(self):
            raise OSError

        def on_step_end(self):
            calls.append("on_step_end")

        def should_stop_training(self):
            return True

    manager = CallbackManager([Faulty()])
    manager.start_update()
    hook = manager.hook
    hook.on_batch_start(trainer=None, batch_idx=0, batch=None)
    hook.on_step_end(trainer=None, skipped=False)
    assert manager.ask_stop(trainer=None) == []
    assert calls == []
    assert manager.used == frozenset()


def test_others_are_called_after_a_callback_has_been_switched_off(recorder: Any) -> None:
    after = recorder()
    manager = CallbackManager([make_faulty("on_log", OSError(), critical=False), after])
    for step in range(2):
        manager.hook.on_log(trainer=None, metrics={}, step=step, event=0, time=0.0)
    assert after.calls == ["on_log", "on_log"]


def test_the_first_of_two_failures_is_raised_and_the_second_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    second = type("Second", (TrainerCallback,), {"on_log": lambda self: 1 / 0})()
    manager = CallbackManager([make_faulty("on_log", OSError("first")), second])
    with pytest.raises(CallbackError, match="Faulty"):
        manager.hook.on_log(trainer=None, metrics={}, step=0, event=0, time=0.0)
    assert "Second (not installed) failed in on_log: ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("hook", ["on_exception", "on_train_end"])
def test_a_second_failure_while_the_run_ends_does_not_mask_the_first(
    make_trainer: Callable[..., Trainer],
    recorder: Any,
    caplog: pytest.LogCaptureFixture,
    hook: str,
) -> None:
    class Worse(TrainerCallback):
        def on_step_end(self):
            raise OSError("first")

    setattr(Worse, hook, lambda self: 1 / 0)
    neighbour = recorder()
    with pytest.raises(CallbackError, match="failed in on_step_end: OSError: first"):
        make_trainer(Worse(), neighbour).train()
    assert end_of(neighbour) == ["on_exception", "on_train_end"]
    assert f"failed in {hook}: ZeroDivisionError" in caplog.text


def test_an_error_of_the_loop_is_not_masked_by_on_exception(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(make_faulty("on_exception", OSError("second")))
    trainer._loss_of = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def test_a_failure_in_an_event_that_a_callback_has_sent_is_blamed_on_who_failed(
    make_trainer: Callable[..., Trainer], recorder: Any
) -> None:
    class Sends(TrainerCallback):
        critical = False

        def on_epoch_end(self, trainer):
            trainer.log({"own": 1.0})

    class Fails(TrainerCallback):
        def on_log(self, metrics):
            if "own" in metrics:
                raise OSError("why")

    neighbour = recorder()
    trainer = make_trainer(Sends(), Fails(), neighbour)
    with pytest.raises(CallbackError, match=r"^Fails \(not installed\) failed in on_log: OSError"):
        trainer.train()
    assert "on_epoch_end" in neighbour.calls
    assert trainer.run.view.manager.switched_off == []


def test_a_failure_that_waits_is_not_raised_by_an_event_inside_its_own() -> None:
    class First(TrainerCallback):
        def on_epoch_start(self):
            raise OSError("first")

    class Second(TrainerCallback):
        def on_epoch_start(self):
            with pytest.raises(CallbackError, match=r"^Third"):
                manager.hook.on_log(trainer=None, metrics={}, step=0, event=0, time=0.0)

    class Third(TrainerCallback):
        def on_log(self):
            raise OSError("third")

    manager = CallbackManager([First(), Second(), Third()])
    with pytest.raises(CallbackError, match=r"^First"):
        manager.hook.on_epoch_start(trainer=None, epoch=0)


def test_a_usage_error_in_on_train_start_is_a_refusal(
    make_trainer: Callable[..., Trainer], recorder: Any
) -> None:
    neighbour = recorder()
    refuses = Plugin(make_faulty("on_train_start", UsageError("no metric")), "x", "dist-x", "1.0")
    with pytest.raises(PluginError, match=r"^x \(dist-x 1.0\): no metric$"):
        make_trainer(refuses, neighbour).train()
    assert neighbour.calls == ["on_setup", "on_train_start", "on_exception", "on_train_end"]


@pytest.mark.parametrize(
    ("error", "expected"), [(OSError("why"), CallbackError), (UsageError("why"), PluginError)]
)
def test_a_failure_in_on_snapshot_load_is_named_and_the_neighbours_load(
    make_trainer: Callable[..., Trainer], recorder: Any, error: Exception, expected: Any
) -> None:
    make_trainer(max_steps=2).train()
    neighbour = recorder()
    with pytest.raises(expected, match=r"Faulty \(not installed\).*why"):
        make_trainer(make_faulty("on_snapshot_load", error), neighbour).train(resume=True)
    assert neighbour.calls[:2] == ["on_snapshot_search", "on_setup"]
    assert neighbour.calls[2:] == ["on_snapshot_load", "on_exception", "on_train_end"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"best": {"when": object()}}, "Faulty.best.when is a builtins.object"),
        ([1, 2], "must answer a dict or None"),
        ("no", "must answer a dict or None"),
    ],
)
def test_state_that_cannot_be_saved_is_a_failure_that_names_the_value(
    make_trainer: Callable[..., Trainer], answer: object, words: str
) -> None:
    faulty = type("Faulty", (TrainerCallback,), {"on_snapshot_save": lambda self: answer})()
    with pytest.raises(CallbackError, match=r"Faulty .* failed in on_snapshot_save") as caught:
        make_trainer(faulty).train()
    assert words in str(caught.value)


@pytest.mark.parametrize("answer", ["no", 1, [True]])
def test_an_answer_to_should_stop_training_that_is_none_is_a_failure(
    make_trainer: Callable[..., Trainer], answer: object
) -> None:
    faulty = type("Faulty", (TrainerCallback,), {"should_stop_training": lambda self: answer})()
    with pytest.raises(CallbackError, match=r"Faulty .* failed in should_stop_training"):
        make_trainer(faulty, writes=False).train()


def test_a_wrapper_that_fails_in_a_run_ends_it(make_trainer: Callable[..., Trainer]) -> None:
    class Around(TrainerCallback):
        @hookimpl(wrapper=True)
        def on_step_end(self):
            yield
            raise OSError("why")

    with pytest.raises(CallbackError, match=r"Around .* failed in on_step_end: OSError: why"):
        make_trainer(Around()).train()


class UnspeakableError(RuntimeError):
    def __str__(self):
        raise KeyError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("critical", [True, False])
def test_an_error_whose_text_cannot_be_had_has_an_owner_all_the_same(
    make_trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture, critical: bool
) -> None:
    original = UnspeakableError()
    trainer = make_trainer(make_faulty("on_step_end", original, critical=critical))
    said = "Faulty (not installed) failed in on_step_end: UnspeakableError: <its text cannot be"
    if critical:
        with pytest.raises(CallbackError) as caught:
            trainer.train()
        assert str(caught.value).startswith(said)
        assert caught.value.__cause__ is original
    else:
        assert trainer.train().switched_off == ("Faulty",)
        assert said in caplog.text


def test_an_error_of_the_loop_whose_text_cannot_be_had_ends_the_run_as_any_other(
    make_trainer: Callable[..., Trainer], recorder: Any
) -> None:
    neighbour, results = recorder(), []
    trainer = make_trainer(neighbour, Listener(results))

    def fails(batch):
        raise UnspeakableError

    trainer._loss_of = fails
    with pytest.raises(UnspeakableError):
        trainer.train()
    assert end_of(neighbour) == ["on_exception", "on_train_end"]
    assert (results[0].status, results[0].stop_reason) == ("failed", "UnspeakableError")


def test_a_refusal_whose_text_cannot_be_had_has_an_owner_all_the_same(
    make_trainer: Callable[..., Trainer],
) -> None:
    error = type("Odd", (UsageError,), {"__str__": UnspeakableError.__str__})()
    with pytest.raises(PluginError, match=r"^Faulty \(not installed\): <its text cannot be had"):
        make_trainer(make_faulty("on_train_start", error)).train()


@pytest.mark.parametrize("hook", ["should_stop_training", "on_snapshot_save"])
def test_an_answer_whose_text_cannot_be_had_has_an_owner_all_the_same(
    make_trainer: Callable[..., Trainer], hook: str
) -> None:
    answer = type("Answer", (), {"__repr__": UnspeakableError.__str__})()
    faulty = type("Faulty", (TrainerCallback,), {hook: lambda self: answer})()
    with pytest.raises(CallbackError, match=rf"Faulty .* failed in {hook}: \w+: .*a Answer; it"):
        make_trainer(faulty).train()


def test_a_text_of_many_lines_is_told_whole(make_trainer: Callable[..., Trainer]) -> None:
    text = "first line\n  second line\n\nlast line"
    with pytest.raises(CallbackError) as caught:
        make_trainer(make_faulty("on_step_end", ValueError(text))).train()
    assert str(caught.value) == f"Faulty (not installed) failed in on_step_end: ValueError: {text}"


class PrunedError(Exception):
    """As optuna.TrialPruned: no failure, and somebody outside waits for it."""


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("hook", DURING)
def test_an_exception_that_passes_reaches_the_caller_as_itself(
    make_trainer: Callable[..., Trainer], recorder: Any, hook: str, position: str
) -> None:
    original = PrunedError("at 3")
    faulty = make_faulty(hook, original, passes=(PrunedError,), critical=False)
    callbacks, neighbours = place(position, faulty, recorder)
    trainer = make_trainer(*callbacks, Listener([]))
    with pytest.raises(PrunedError) as caught:
        trainer.train()
    assert caught.value is original
    assert trainer.run.result is not None
    ended = (trainer.run.result.status, trainer.run.result.stop_reason)
    if hook not in ENDS:  # which are behind the decision
        assert ended == ("stopped", "PrunedError")
        assert trainer.run.result.stop_detail == "at 3"
        assert trainer.run.result.stopped_by == "Faulty"
        for each in neighbours:
            assert end_of(each) == ["on_exception", "on_train_end"]
    assert trainer.output_dir is not None
    assert (trainer.output_dir / "final").exists() == (hook == "on_final_saved")


def test_an_exception_that_passes_gives_way_to_a_failure(
    make_trainer: Callable[..., Trainer],
) -> None:
    callbacks = [
        make_faulty("on_epoch_end", PrunedError("x"), passes=(PrunedError,)),
        type("Other", (TrainerCallback,), {"on_epoch_end": lambda self: 1 / 0})(),
    ]
    trainer = make_trainer(*callbacks)
    with pytest.raises(CallbackError, match="ZeroDivisionError"):
        trainer.train()
    assert trainer.run.result is not None
    assert trainer.run.result.status == "failed"


def test_an_exception_that_passes_goes_through_the_hook_that_has_sent_its_event(
    make_trainer: Callable[..., Trainer],
) -> None:
    class Sends(TrainerCallback):
        def on_epoch_end(self, trainer: Any) -> None:  # type: ignore[override]
            trainer.log({"a": 1.0})

    class Prunes(TrainerCallback):
        passes = (PrunedError,)

        def on_log(self, metrics: Any) -> None:  # type: ignore[override]
            if "a" in metrics:
                raise PrunedError

    trainer = make_trainer(Sends(), Prunes())
    with pytest.raises(PrunedError):
        trainer.train()
    assert trainer.run.result is not None
    assert trainer.run.result.stopped_by == "Prunes"


def test_a_usage_error_passes_from_any_hook_of_a_critical_callback(
    make_trainer: Callable[..., Trainer],
) -> None:
    original = UsageError("monitor 'x' does not exist")
    trainer = make_trainer(make_faulty("on_epoch_end", original))
    with pytest.raises(UsageError) as caught:
        trainer.train()
    assert caught.value is original
    assert trainer.run.result is not None
    assert trainer.run.result.status == "failed"
    make_trainer(make_faulty("on_epoch_end", original, critical=False), overwrite=True).train()


def test_a_pruned_run_goes_on_from_its_last_snapshot(make_trainer: Callable[..., Trainer]) -> None:
    class Prunes(TrainerCallback):
        passes = (PrunedError,)

        def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
            if trainer.step == 5:
                raise PrunedError

    trainer = make_trainer(Prunes(), epochs=4)
    with pytest.raises(PrunedError):
        trainer.train()
    resumed = make_trainer(epochs=4)
    assert resumed.train(resume=True).steps == 8


@pytest.mark.parametrize("value", [PrunedError, [PrunedError], ("PrunedError",), (3,)])
def test_passes_that_are_no_tuple_of_exceptions_are_refused(value: object) -> None:
    class Wrong(TrainerCallback):
        passes = value  # type: ignore[assignment]

    with pytest.raises(PluginError, match=r"passes of .*Wrong must be a tuple of exception"):
        CallbackManager([Wrong()])
