"""Who is called before whom."""

from __future__ import annotations

import pytest

from trainer_callback import PluginError, TrainerCallback, hookimpl
from trainer_callback.calls.manager import CallbackManager, Plugin


def record(name: str, **wishes: object) -> Plugin:
    """A plugin called `name` with `before` or `after`."""
    return Plugin(type(name, (TrainerCallback,), wishes)(), name, f"dist-{name}", "1.0")


def names(manager: CallbackManager) -> list[str]:
    return [plugin.name for plugin in manager.plugins]


def call_order(*kinds: dict[str, bool]) -> list[int]:
    """The order in which implementations with these options are called, by their places."""
    calls: list[int] = []

    def make(place: int, options: dict[str, bool]) -> TrainerCallback:
        def on_log(self):
            calls.append(place)

        def around(self):
            calls.append(place)
            return (yield)

        function = hookimpl(**options)(around if "wrapper" in options else on_log)
        return type(f"C{place}", (TrainerCallback,), {"on_log": function})()

    callbacks = [make(place, options) for place, options in enumerate(kinds)]
    manager = CallbackManager(callbacks)
    manager.hook.on_log(trainer=None, metrics={}, step=0, event=0, time=0.0)
    return calls


def test_callbacks_are_called_in_their_order_then_the_discovered_ones() -> None:
    given, discovered = [record("z"), record("b")], [record("a"), record("c")]
    assert names(CallbackManager(given, discovered)) == ["z", "b", "a", "c"]
    assert call_order({}, {}, {}) == [0, 1, 2]


def test_tryfirst_goes_before_and_trylast_behind_the_others() -> None:
    assert call_order({"trylast": True}, {}, {"tryfirst": True}) == [2, 1, 0]


def test_callbacks_keep_their_order_among_those_that_try_to_be_first_or_last() -> None:
    first, last = {"tryfirst": True}, {"trylast": True}
    assert call_order(last, first, last, {}, first) == [1, 4, 3, 0, 2]


def test_the_first_wrapper_is_the_outermost_and_markers_move_it() -> None:
    around = {"wrapper": True}
    assert call_order({}, around, around) == [1, 2, 0]
    assert call_order(
        {"trylast": True, **around},
        {"trylast": True, **around},
        around,
        {"tryfirst": True, **around},
    ) == [3, 2, 0, 1]


def test_before_and_after_move_no_more_than_they_must() -> None:
    plugins = [record("x", after=("z",)), record("y"), record("z"), record("w", before=("y",))]
    assert names(CallbackManager([], plugins)) == ["z", "x", "w", "y"]


def test_wishes_about_plugins_that_are_not_there_are_ignored() -> None:
    plugins = [record("x", after=("absent",)), record("y", before=("absent",))]
    assert names(CallbackManager([], plugins)) == ["x", "y"]


def test_a_wish_holds_for_every_callback_of_a_plugin() -> None:
    first, second = record("x"), record("x")
    first.callback.state_key, second.callback.state_key = "one", "two"
    plugins = [first, record("y", before=("x",)), second]
    assert names(CallbackManager([], plugins)) == ["y", "x[one]", "x[two]"]


def test_a_cycle_is_refused_naming_the_plugins_in_it_only() -> None:
    plugins = [
        record("free"),
        record("late", after=("a",)),
        record("a", after=("b",)),
        record("b", before=("c",), after=("c",)),
        record("c"),
    ]
    with pytest.raises(PluginError) as caught:
        CallbackManager([], plugins)
    message = str(caught.value)
    assert "b (dist-b 1.0) after c (dist-c 1.0) after b (dist-b 1.0)" in message
    assert "free" not in message
    assert "late" not in message


def test_a_wish_that_is_a_word_instead_of_a_tuple_is_refused() -> None:
    with pytest.raises(PluginError, match=r"before must be a tuple.*before = \('x',\)"):
        CallbackManager([], [record("y", before="x")])
