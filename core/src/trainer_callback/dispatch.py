"""The fast path: pluggy's implementations, in order -> one function per hook that calls them
directly.

Each function is written out as source and compiled once per run, as `dataclasses` does for
`__init__`: a call costs what a list of bound methods costs, and a hook that nobody implements costs
an empty call. `wrappers` puts the wrappers around it.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .arguments import TENSORS, find_copier
from .costs import HookCost
from .identity import Plugin
from .implementation import HOOK_ARGUMENTS, describe

__all__ = [
    "QUESTIONS",
    "Answer",
    "FailureHandler",
    "Receiver",
    "compile_adapter",
    "compile_hook",
    "find_shared",
]

QUESTIONS: Final = frozenset({"should_stop_training", "on_snapshot_save"})
"""Hooks whose answers are used. They are called with a name beside each answer."""

Answer = tuple[Plugin, Any]


class FailureHandler(Protocol):
    """Who is told when a callback raises.

    Failures wait on a stack until their event ends, for events can be nested: a callback that logs
    in `on_epoch_end` sends `on_log` to all.
    """

    def caught(self, plugin: Plugin, hook: str, error: BaseException) -> int:
        """Takes note of a failure, while the other callbacks still get the event.

        Returns:
            How many failures that puts on the stack: 1, or 0 for a callback that is not critical.
        """

    def finish(self, count: int) -> None:
        """Takes the last `count` failures, those of the event that ends, and raises the first."""

    def drop(self, count: int) -> None:
        """Takes the last `count` failures and only logs them: something graver ends the run."""


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


def find_shared(functions: Iterable[Callable[..., Any]]) -> frozenset[str]:
    """Returns the tensors that more than one of the implementations of a hook asks for: each must
    have a copy, since it could write to it.
    """
    taken = Counter(name for each in functions for name in inspect.signature(each).parameters)
    return frozenset(name for name in TENSORS if taken[name] > 1)


def compile_hook(
    hook: str,
    receivers: Sequence[Receiver],
    failures: FailureHandler,
    *,
    timed: bool,
    shared: frozenset[str] = frozenset(),
) -> Callable[..., Any]:
    """Returns the function that calls `receivers` in order, with the keyword arguments of the hook.

    A receiver that raises does not keep the others from the event: `failures.caught` is told at
    once and `failures.finish` at the end, which decides whether to raise. KeyboardInterrupt is the
    user's and passes at once.

    Args:
        timed: add the time of each call to its receiver's cost.
        shared: the arguments of which each receiver gets a copy, as `find_shared` found them.

    Returns:
        For a question a function that returns a list of `(plugin, answer)` of those that did not
        answer None; else one that returns None.
    """
    names: dict[str, Any] = {
        "clock": time.perf_counter,
        "check": _check_answer,
        "caught": failures.caught,
        "finish": failures.finish,
        "drop": failures.drop,
    }
    lines = ["failed = 0"] if receivers else []
    if hook in QUESTIONS:
        lines.append("answers = []")
    for index, receiver in enumerate(receivers):
        names[f"p{index}"], names[f"cost{index}"] = receiver.plugin, receiver.cost
        expression = _write_expression(str(index), receiver, shared, names)
        lines += _write_call(hook, index, expression, timed=timed)
    if receivers:
        lines.append("if failed: finish(failed)")
    lines.append("return answers" if hook in QUESTIONS else "return None")
    return _compile(hook, lines, names)


def compile_adapter(hook: str, receiver: Receiver, shared: frozenset[str]) -> Callable[..., Any]:
    """Returns the receiver's function as one that takes all arguments of the hook, and passes on
    what it asks for.
    """
    names: dict[str, Any] = {}
    return _compile(hook, [f"return {_write_expression('', receiver, shared, names)}"], names)


def _compile(hook: str, body: Sequence[str], names: dict[str, Any]) -> Callable[..., Any]:
    source = [f"def {hook}({', '.join(HOOK_ARGUMENTS[hook])}):", *(f"    {line}" for line in body)]
    exec(compile("\n".join(source), f"<dispatch of {hook}>", "exec"), names)
    function: Callable[..., Any] = names[hook]
    return function


def _write_call(hook: str, index: int, expression: str, *, timed: bool) -> list[str]:
    body = [f"answer = {expression}"]
    if timed:
        add = f"cost{index}.seconds += clock() - start; cost{index}.calls += 1"
        body = ["start = clock()", *body, add]
    if hook in QUESTIONS:
        body.append(f"if answer is not None: answers.append((p{index}, answer))")
    elif timed:  # the first call of every hook is
        body.append("if answer is not None: check(answer)")
    return [
        "try:",
        *(f"    {line}" for line in body),
        "except KeyboardInterrupt: drop(failed); raise",
        "except BaseException as error:",
        f"    failed += caught(p{index}, {hook!r}, error)",
    ]


def _write_expression(
    mark: str, receiver: Receiver, shared: frozenset[str], names: dict[str, Any]
) -> str:
    """Returns the source of the call, and puts what it needs into `names`, with `mark` behind."""
    plugin = receiver.plugin
    names[f"f{mark}"] = receiver.function
    arguments = []
    for parameter in inspect.signature(receiver.function).parameters.values():
        name = value = parameter.name
        copier = find_copier(
            name, plugin.state_key, describe(plugin.callback), shared=name in shared
        )
        if copier is not None:
            names[f"copy_{name}{mark}"] = copier
            value = f"copy_{name}{mark}({name})"
        arguments.append(f"{name}={value}" if parameter.kind is parameter.KEYWORD_ONLY else value)
    return f"f{mark}({', '.join(arguments)})"


def _check_answer(answer: object) -> None:
    """Refuses what nobody would ever run; other answers are of no use, and do no harm."""
    if isinstance(answer, (Coroutine, Generator, AsyncGenerator)):
        if isinstance(answer, Coroutine):
            answer.close()  # or Python would warn of it, somewhere else
        raise TypeError(
            f"it answered a {type(answer).__name__}, whose body nobody would run. Run it in the "
            "hook."
        )
