"""The fast path: pluggy's ordered implementations -> one function per hook that calls them
directly.

Each function is written out as source and compiled once per run, as `dataclasses` does for
`__init__`: a call costs what a list of bound
methods costs, and a hook that nobody implements costs an empty call. A hook with a wrapper goes
through pluggy, around that same function.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

import pluggy

from .errors import CallbackError
from .hookspecs import PROJECT
from .implementation import HOOK_ARGUMENTS

if TYPE_CHECKING:
    from .manager import Plugin

__all__ = [
    "PER_BATCH",
    "QUESTIONS",
    "Answer",
    "FailureHandler",
    "HookCost",
    "Receiver",
    "compile_hook",
]

QUESTIONS: Final = frozenset({"should_stop_training", "on_snapshot_save"})
"""Hooks whose answers are used. They are called with a name beside each answer."""

PER_BATCH: Final = frozenset(
    {
        "on_batch_start",
        "on_forward_end",
        "on_backward_end",
        "on_gradients_clipped",
        "on_step_end",
        "on_batch_end",
        "should_stop_training",
    }
)
"""Hooks called so often that their time is sampled; all others are always timed."""

Answer = tuple["Plugin", Any]


class FailureHandler(Protocol):
    """Who is told when a callback raises."""

    def caught(self, plugin: Plugin, hook: str, error: BaseException) -> None:
        """Takes note of a failure; the other callbacks still get the event."""

    def finish(self) -> None:
        """Ends an event in which something was caught; raises where that ends the run."""


@dataclass
class HookCost:
    """Time that one plugin spent in one hook, in the calls that were timed."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Receiver:
    """One implementation of a hook, ready to be called.

    Attributes:
        plugin: whose it is.
        function: bound to its object.
        cost: where its time is added up.
    """

    plugin: Plugin
    function: Callable[..., Any]
    cost: HookCost


def _view_checkpoint(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    own = copy.deepcopy(checkpoint.get("callback_state", {}))
    return MappingProxyType({**checkpoint, "callback_state": own})


# What a callback is handed it cannot use to change the run: these arguments go to each one as a
# copy of its own.
_COPIES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "metrics": dict,
    "result": copy.deepcopy,
    "checkpoint": _view_checkpoint,
}


def compile_hook(
    hook: str,
    receivers: Sequence[Receiver],
    wrappers: Sequence[Receiver],
    failures: FailureHandler,
    *,
    timed: bool,
) -> Callable[..., Any]:
    """Returns the function that calls `receivers` in order, with keyword arguments of the hook.

    A receiver that raises does not keep the others from the event: `failures.caught` is told at
    once and `failures.finish` at the
    end, which decides whether to raise. KeyboardInterrupt is the user's and passes at once.

    Args:
        wrappers: in pluggy's order, the last one outermost; their own time is not measured.
        timed: add the time of each call to its receiver's cost.

    Returns:
        For a question a function that returns a list of `(plugin, answer)` of those that did not
        answer None; else one that returns None.
    """
    names: dict[str, Any] = {f"copy_{name}": view for name, view in _COPIES.items()}
    names.update(clock=time.perf_counter, caught=failures.caught, finish=failures.finish)
    lines = [f"def {hook}({', '.join(HOOK_ARGUMENTS[hook])}):", "    answers, failed = [], False"]
    for index, receiver in enumerate(receivers):
        names[f"f{index}"], names[f"p{index}"] = receiver.function, receiver.plugin
        names[f"cost{index}"] = receiver.cost
        lines += _write_call(hook, index, receiver.function, timed=timed)
    if receivers:
        lines.append("    if failed: finish()")
    lines.append("    return answers" if hook in QUESTIONS else "    return None")
    if not receivers and hook not in QUESTIONS:
        del lines[1]
    exec(compile("\n".join(lines), f"<dispatch of {hook}>", "exec"), names)
    direct: Callable[..., Any] = names[hook]
    return _wrap(hook, direct, wrappers, failures) if wrappers else direct


def _write_call(hook: str, index: int, function: Callable[..., Any], *, timed: bool) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    body = [f"answer = f{index}({', '.join(_write_argument(p) for p in parameters)})"]
    if timed:
        add = f"cost{index}.seconds += clock() - start; cost{index}.calls += 1"
        body = ["start = clock()", *body, add]
    if hook in QUESTIONS:
        body.append(f"if answer is not None: answers.append((p{index}, answer))")
    return [
        "    try:",
        *(f"        {line}" for line in body),
        "    except KeyboardInterrupt: raise",
        "    except BaseException as error:",
        f"        failed = True; caught(p{index}, {hook!r}, error)",
    ]


def _write_argument(parameter: inspect.Parameter) -> str:
    name = parameter.name
    value = f"copy_{name}({name})" if name in _COPIES else name
    return f"{name}={value}" if parameter.kind is parameter.KEYWORD_ONLY else value


def _wrap(
    hook: str,
    direct: Callable[..., Any],
    wrappers: Sequence[Receiver],
    failures: FailureHandler,
) -> Callable[..., Any]:
    """Lets pluggy run the wrappers around `direct`.

    What `yield` gives a wrapper is the list of plain answers, as pluggy documents it. The names are
    put back afterwards: a list of
    another length than was asked is the outermost wrapper's own answer.
    """
    named: list[Answer] = []
    names: dict[str, Any] = {"named": named, "direct": direct}
    arguments = HOOK_ARGUMENTS[hook]
    passed = ", ".join(f"{name}={name}" for name in arguments)
    lines = [
        f"def {hook}({', '.join(arguments)}):",
        f"    named[:] = direct({passed}) or ()",
        "    return [answer for _, answer in named]",
    ]
    exec(compile("\n".join(lines), f"<dispatch of {hook}>", "exec"), names)
    core = pluggy.HookspecMarker(PROJECT)(pluggy.HookimplMarker(PROJECT)(names[hook]), True)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_as_module("core", hook, core))
    manager.register(_as_module("core", hook, core), "core")
    for index, wrapper in enumerate(wrappers):
        manager.register(_as_module(f"wrapper{index}", hook, wrapper.function), f"wrapper{index}")

    def call(**arguments: Any) -> Any:
        named.clear()
        try:
            result = getattr(manager.hook, hook)(**arguments)
        except (CallbackError, KeyboardInterrupt):
            raise
        except BaseException as error:
            failures.caught(_find_raiser(error, wrappers).plugin, hook, error)
            failures.finish()
            result = None
        answers = list(result or ())
        if len(answers) != len(named):
            return [(wrappers[-1].plugin, answer) for answer in answers]
        return [(plugin, answer) for (plugin, _), answer in zip(named, answers, strict=True)]

    return call


def _as_module(name: str, hook: str, function: Callable[..., Any]) -> ModuleType:
    module = ModuleType(name)
    setattr(module, hook, function)
    return module


def _find_raiser(error: BaseException, wrappers: Sequence[Receiver]) -> Receiver:
    """Returns the wrapper whose code is deepest in the traceback of `error`."""
    codes = {
        getattr(inspect.unwrap(wrapper.function), "__code__", None): wrapper for wrapper in wrappers
    }
    raiser, traceback = wrappers[-1], error.__traceback__
    while traceback is not None:
        raiser = codes.get(traceback.tb_frame.f_code, raiser)
        traceback = traceback.tb_next
    return raiser
