"""How a hook reaches its callbacks: with which arguments, and by which way."""

from __future__ import annotations

import itertools
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trainer import Trainer
from trainer_callback import CallbackError, TrainerCallback
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.hookspecs import SPECS

GIVEN = dict(zip(SPECS["on_batch_start"].arguments, "tib", strict=True))
WISHES = [names for count in range(4) for names in itertools.permutations(GIVEN, count)]


def make_asking(names: Sequence[str], seen: list[Any], key: str) -> TrainerCallback:
    """A callback that asks `on_batch_start` for `names`, in this order."""
    scope: dict[str, Any] = {"seen": seen, "key": key}
    wished = ", ".join(names)
    exec(f"def on_batch_start(self, {wished}): seen.append((key, {wished}))", scope)
    hooks = {"on_batch_start": scope["on_batch_start"], "state_key": key}
    return type("Asks", (TrainerCallback,), hooks)()


def call_twice(callbacks: Sequence[TrainerCallback]) -> None:
    """Once in an update that is timed, the first, and once in one that is not."""
    manager = CallbackManager(callbacks)
    manager.hook.on_batch_start(**GIVEN)
    manager.start_update()
    manager.hook.on_batch_start(**GIVEN)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("names", WISHES)
def test_callbacks_that_ask_for_the_same_get_it(names: Sequence[str], count: int) -> None:
    seen: list[Any] = []
    call_twice([make_asking(names, seen, str(number)) for number in range(count)])
    wanted = [GIVEN[name] for name in names]
    assert seen == [(str(number), *wanted) for number in range(count)] * 2


def test_callbacks_that_ask_for_different_things_each_get_theirs() -> None:
    seen: list[Any] = []
    everybody = [make_asking(names, seen, str(key)) for key, names in enumerate(WISHES)]
    call_twice(everybody)
    expected = [(str(key), *(GIVEN[each] for each in names)) for key, names in enumerate(WISHES)]
    assert seen == expected * 2


def test_one_function_in_two_callbacks_is_each_ones_own() -> None:
    kinds = [
        type(name, (TrainerCallback,), {"should_stop_training": staticmethod(lambda: True)})
        for name in ("First", "Second")
    ]
    kinds[1].should_stop_training = vars(kinds[0])["should_stop_training"]
    answers = CallbackManager([kind() for kind in kinds]).ask_stop(trainer=None)
    assert [(plugin.name, answer) for plugin, answer in answers] == [
        ("First", True),
        ("Second", True),
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_wrong_argument_of_a_hook_is_refused_as_of_any_function(count: int) -> None:
    callbacks = [make_asking(["batch_idx"], [], str(number)) for number in range(count)]
    hook: Any = CallbackManager(callbacks).hook
    with pytest.raises(TypeError, match=r"on_batch_start.* unexpected keyword argument 'index'"):
        hook.on_batch_start(**GIVEN, index=0)
    with pytest.raises(TypeError, match=r"on_batch_start.* missing .* 'batch'"):
        hook.on_batch_start(trainer=None, batch_idx=0)


def test_the_object_of_the_hooks_stays_the_same_and_changes_in_place() -> None:
    class Faulty(TrainerCallback):
        critical = False

        def on_step_end(self):
            raise OSError

        def should_stop_training(self):
            return True

    manager = CallbackManager([Faulty()])
    hook, plain = manager.hook, manager.hook.on_step_end
    assert manager.used == {"on_step_end", "should_stop_training"}
    manager.start_update()  # the first is timed
    assert hook.on_step_end is not plain
    hook.on_step_end(trainer=None, skipped=False)
    manager.start_update()
    manager.start_update()
    assert manager.hook is hook
    assert manager.used == set()
    assert manager.ask_stop(trainer=None) == []
    assert hook.on_step_end(trainer=None, skipped=False) is None


def test_a_traceback_shows_lines_that_are_in_a_file() -> None:
    class Fails(TrainerCallback):
        def on_batch_start(self, batch):
            raise OSError("why")

    manager = CallbackManager([Fails()])
    with pytest.raises(CallbackError) as caught:
        manager.hook.on_batch_start(**GIVEN)
    cause = caught.value.__cause__
    assert cause is not None
    frames = traceback.extract_tb(cause.__traceback__)
    assert [frame.name for frame in frames] == ["on_batch_start", "on_batch_start"]
    assert all(linecache.getline(frame.filename, frame.lineno or 0) for frame in frames)


@pytest.mark.parametrize("wish", ["self", "self, trainer", "self, *, trainer"])
def test_few_frames_lie_between_train_and_a_callback(
    make_trainer: Callable[..., Trainer], wish: str
) -> None:
    depths: list[int] = []

    def note() -> None:
        names = [frame.name for frame in traceback.extract_stack()][:-1]
        depths.append(len(names) - names.index("train"))

    scope: dict[str, Any] = {"note": note}
    exec(f"def on_backward_end({wish}): note()", scope)
    callback = type("Deep", (TrainerCallback,), {"on_backward_end": scope["on_backward_end"]})()
    make_trainer(callback, writes=False).train()
    assert max(depths) <= 7
