"""Wrappers behave as pluggy's do: the oracle is pluggy itself."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import pluggy
import pytest

from trainer_callback import CallbackError, StopRequest, TrainerCallback, hookimpl
from trainer_callback.calls.manager import CallbackManager

NEW: Any = {"wrapper": True}


def make(function: Callable[..., Any], name: str, **options: Any) -> TrainerCallback:
    return type(name, (TrainerCallback,), {"should_stop_training": hookimpl(**options)(function)})()


def ask(*callbacks: TrainerCallback) -> Any:
    manager = CallbackManager(callbacks)
    return manager.hook.should_stop_training(trainer="the trainer")


def ask_pluggy(*callbacks: TrainerCallback) -> Any:
    """What plain pluggy answers; it calls the last registered first."""
    manager = pluggy.PluginManager("trainer")
    manager.add_hookspecs(TrainerCallback)
    for callback in reversed(callbacks):
        manager.register(callback)
    return manager.hook.should_stop_training(trainer="the trainer")


def yes(self):
    return True


def no(self):
    return False


def silent(self):
    return None


def passes_on(self):
    answers = yield
    return answers


def turns_round(self, trainer):
    answers = yield
    assert trainer == "the trainer"
    return [not answer for answer in answers]


def adds(self):
    return [*(yield), True]


STYLES = [
    ((passes_on, NEW),),
    ((turns_round, NEW),),
    ((turns_round, NEW), (turns_round, NEW)),
    ((adds, NEW),),
    ((turns_round, {**NEW, "trylast": True}), (adds, {**NEW, "tryfirst": True})),
]


@pytest.mark.parametrize("wrappers", STYLES)
@pytest.mark.parametrize("answers", [(), (yes,), (no, yes), (silent, no)])
def test_wrappers_give_the_answers_that_pluggy_gives(wrappers: Any, answers: Any) -> None:
    callbacks = [make(f, f"Wrapper{i}", **options) for i, (f, options) in enumerate(wrappers)]
    callbacks += [make(function, f"Answer{i}") for i, function in enumerate(answers)]
    assert [answer for _, answer in ask(*callbacks)] == ask_pluggy(*callbacks)


def test_a_wrapper_goes_well_where_only_the_hooks_are_kept() -> None:
    hook = CallbackManager([make(turns_round, "Turns", **NEW), make(yes, "Yes")]).hook
    assert [answer for _, answer in hook.should_stop_training(trainer="the trainer")] == [False]


def test_answers_keep_their_names_through_a_wrapper() -> None:
    found = ask(make(passes_on, "Around", **NEW), make(yes, "First"), make(no, "Second"))
    assert [(p.name, answer) for p, answer in found] == [("First", True), ("Second", False)]


REQUEST = StopRequest("reason")


def requests(self):
    return REQUEST


def drops_the_first_and_adds_one(self):
    answers = yield
    return [*answers[1:], True]


def changes_its_list(self):
    answers = yield
    answers[0] = True
    return answers


def adds_before(self):
    return [True, *(yield)]


def decides(self):
    yield
    return [StopRequest("mine")]


def reverses(self):
    return (yield)[::-1]


@pytest.mark.parametrize(
    ("wrapper", "inner", "expected"),
    [
        (drops_the_first_and_adds_one, [yes, no], [("Around", False), ("Around", True)]),
        (turns_round, [yes, no], [("Around", False), ("Around", True)]),
        (changes_its_list, [no, yes], [("Around", True), ("C1", True)]),
        (adds, [no, yes], [("C0", False), ("C1", True), ("Around", True)]),
        (adds_before, [no, yes], [("Around", True), ("C0", False), ("C1", True)]),
        (reverses, [requests, no], [("Around", False), ("C0", REQUEST)]),
        (drops_the_first_and_adds_one, [no, requests], [("C1", REQUEST), ("Around", True)]),
    ],
)
def test_an_answer_that_a_wrapper_made_is_its_own(
    wrapper: Any, inner: list[Any], expected: list[Any]
) -> None:
    callbacks = [make(function, f"C{i}") for i, function in enumerate(inner)]
    found = ask(make(wrapper, "Around", **NEW), *callbacks)
    assert [(plugin.name, answer) for plugin, answer in found] == expected


def test_a_list_of_another_length_is_the_answer_of_the_wrapper() -> None:
    found = ask(make(decides, "Around", **NEW), make(no, "First"), make(no, "Second"))
    assert [(plugin.name, answer.reason) for plugin, answer in found] == [("Around", "mine")]


def save(wrapper: Any, *answers: Any) -> Any:
    """What `on_snapshot_save` gives, with a wrapper around callbacks that answer `answers`."""
    around = type("Around", (TrainerCallback,), {"on_snapshot_save": hookimpl(**NEW)(wrapper)})()
    inner = [
        type(f"C{i}", (TrainerCallback,), {"on_snapshot_save": lambda self, answer=answer: answer})
        for i, answer in enumerate(answers)
    ]
    for cls in inner:
        cls.on_snapshot_save.__signature__ = inspect.signature(lambda self: None)
    manager = CallbackManager([around, *(cls() for cls in inner)])
    found = manager.hook.on_snapshot_save(trainer=None, epoch=0, step=0)
    return [(plugin.name, answer) for plugin, answer in found]


def adds_a_state(self):
    return [*(yield), {"mine": 1}]


def writes_into_a_state(self):
    answers = yield
    answers[0]["n"] = 100
    answers[1]["deep"].clear()
    return answers


def test_states_keep_their_owners_whatever_their_order() -> None:
    both = [("C0", {"n": 1}), ("C1", {"deep": [2]})]
    states = [state for _, state in both]
    assert save(reverses, *states) == both
    assert save(adds_a_state, *states) == [*both, ("Around", {"mine": 1})]
    assert save(writes_into_a_state, *states) == both


def drops_a_state(self):
    return (yield)[1:]


def replaces_a_state(self):
    answers = yield
    return [{"n": 7}, *answers[1:]]


def takes_all_states_back(self):
    yield
    return []


def adds_two_states(self):
    return [*(yield), {"mine": 1}, {"mine": 2}]


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        (drops_a_state, "changed the state of C0 (not installed), or left it out"),
        (replaces_a_state, "changed the state of C0 (not installed), or left it out"),
        (takes_all_states_back, "changed the state of C0 (not installed), or left it out"),
        (adds_two_states, "a callback has one state"),
    ],
)
def test_a_wrapper_cannot_change_or_leave_out_the_state_of_another(
    wrapper: Any, words: str
) -> None:
    with pytest.raises(CallbackError, match=r"^Around \(not installed\) failed in on_sn") as caught:
        save(wrapper, {"n": 1}, {"n": 2})
    assert words in str(caught.value)


def test_a_wrapper_cannot_keep_back_a_failure_that_costs_the_others_their_state() -> None:
    def forgives(self):
        with contextlib.suppress(CallbackError):
            yield
        return []

    wrapper = type("Around", (TrainerCallback,), {"on_snapshot_save": hookimpl(**NEW)(forgives)})()
    faulty = type("Inner", (TrainerCallback,), {"on_snapshot_save": fails})()
    sound = type("Sound", (TrainerCallback,), {"on_snapshot_save": lambda self: {"n": 1}})()
    manager = CallbackManager([wrapper, faulty, sound])
    with pytest.raises(CallbackError, match=r"^Inner \(not installed\) failed in on_snapshot_save"):
        manager.hook.on_snapshot_save(trainer=None, epoch=0, step=0)


def test_a_wrapper_gets_just_the_arguments_that_it_asks_for() -> None:
    seen = []

    class Callback(TrainerCallback):
        @hookimpl(wrapper=True)
        def on_epoch_end(self, *, val_loss, epoch=None):
            seen.append((val_loss, epoch))
            return (yield)

    manager = CallbackManager([Callback()])
    manager.hook.on_epoch_end(trainer=None, epoch=1, train_loss=2.0, val_loss=3.0, metrics={})
    assert seen == [(3.0, 1)]


def test_calls_of_one_wrapper_can_be_nested() -> None:
    class Around(TrainerCallback):
        @hookimpl(wrapper=True)
        def on_snapshot_save(self):
            return (yield)

    class Saves(TrainerCallback):
        def on_snapshot_save(self, step):
            if step:
                manager.hook.on_snapshot_save(trainer=None, epoch=0, step=step - 1)
            return {"step": step}

    manager = CallbackManager([Around(), Saves()])
    [(plugin, answer)] = manager.hook.on_snapshot_save(trainer=None, epoch=0, step=2)
    assert (plugin.name, answer) == ("Saves", {"step": 2})


def fails(self):
    raise KeyError("inner")


def fails_before(self):
    raise OSError("before")
    yield


def fails_behind(self):
    yield
    raise OSError("behind")


def fails_in_answer_to_a_failure(self):
    try:
        yield
    except CallbackError:
        raise OSError("second") from None


def stops_early(self):
    return
    yield


def yields_twice(self):
    yield
    yield


def yields_on_and_on(self):
    for _ in range(3):
        with contextlib.suppress(BaseException):
            yield


def forgets_to_return(self):
    yield


def returns_what_has_no_text(self):
    yield
    return type("Odd", (), {"__repr__": lambda self: 1 / 0})()


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        (fails_before, "OSError: before"),
        (fails_behind, "OSError: behind"),
        (stops_early, "did not reach its `yield`"),
        (yields_twice, "second `yield`"),
        (yields_on_and_on, "generator ignored GeneratorExit"),
        (returns_what_has_no_text, "must return the list of answers, got a Odd"),
        (forgets_to_return, "must return the list of answers, got None"),
    ],
)
@pytest.mark.parametrize("critical", [True, False])
def test_a_wrapper_that_fails_is_blamed_and_the_others_are_called_all_the_same(
    wrapper: Any, words: str, critical: bool
) -> None:
    seen = []

    def inner(self):
        seen.append("inner")
        return True

    around = make(wrapper, "Around", **NEW)
    around.critical = critical
    manager = CallbackManager([around, make(inner, "Inner"), make(passes_on, "Second", **NEW)])
    if critical:
        with pytest.raises(CallbackError) as caught:
            manager.hook.should_stop_training(trainer=None)
        assert "Around (not installed) failed in should_stop_training" in str(caught.value)
        assert words in str(caught.value)
    else:
        [(plugin, answer)] = manager.hook.should_stop_training(trainer=None)
        assert (plugin.name, answer) == ("Inner", True)
        assert manager.switched_off == ["Around"]
        assert len(manager.hook.should_stop_training(trainer=None)) == 1
    assert seen == ["inner"] * (1 if critical else 2)


def test_the_failure_of_an_inner_callback_passes_a_wrapper_and_keeps_its_name() -> None:
    with pytest.raises(CallbackError, match=r"^Inner \(not installed\) failed") as caught:
        ask(make(passes_on, "Around", **NEW), make(fails, "Inner"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_wrapper_that_fails_over_a_failure_does_not_mask_it() -> None:
    with pytest.raises(CallbackError, match=r"^Inner \(not installed\) failed"):
        ask(make(fails_in_answer_to_a_failure, "Around", **NEW), make(fails, "Inner"))


def test_a_wrapper_may_deal_with_the_failure_of_another_as_in_pluggy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forgives(self):
        try:
            return (yield)
        except CallbackError:
            return [True]

    [(plugin, answer)] = ask(make(forgives, "Around", **NEW), make(fails, "Inner"))
    assert (plugin.name, answer) == ("Around", True)
    assert "Around (not installed) went on after: Inner (not installed) failed" in caplog.text


def test_ctrl_c_goes_through_a_wrapper_and_cannot_be_kept_back() -> None:
    cleaned = []

    def interrupted(self):
        raise KeyboardInterrupt

    def forgives(self):
        with contextlib.suppress(BaseException):
            yield
        cleaned.append(True)
        return []

    with pytest.raises(KeyboardInterrupt):
        ask(make(forgives, "Around", **NEW), make(interrupted, "Inner"))
    assert cleaned == [True]
