"""The fast path: pluggy's implementations, in order -> one function per hook that calls them
directly.

Each function is written out as source and compiled once per run, as `dataclasses` does for
`__init__`: a call costs what a list of bound methods costs, and a hook that nobody implements costs
an empty call. `wrappers` puts the wrappers around it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .arguments import COPIES
from .costs import HookCost
from .identity import Plugin
from .implementation import HOOK_ARGUMENTS

__all__ = [
    "QUESTIONS",
    "Answer",
    "FailureHandler",
    "Receiver",
    "compile_adapter",
    "compile_hook",
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


def compile_hook(
    hook: str, receivers: Sequence[Receiver], failures: FailureHandler, *, timed: bool
) -> Callable[..., Any]:
    """Returns the function that calls `receivers` in order, with the keyword arguments of the hook.

    A receiver that raises does not keep the others from the event: `failures.caught` is told at
    once and `failures.finish` at the end, which decides whether to raise. KeyboardInterrupt is the
    user's and passes at once.

    Args:
        timed: add the time of each call to its receiver's cost.

    Returns:
        For a question a function that returns a list of `(plugin, answer)` of those that did not
        answer None; else one that returns None.
    """
    names: dict[str, Any] = {
        "clock": time.perf_counter,
        "caught": failures.caught,
        "finish": failures.finish,
        "drop": failures.drop,
    }
    lines = ["failed = 0"] if receivers else []
    if hook in QUESTIONS:
        lines.append("answers = []")
    for index, receiver in enumerate(receivers):
        names[f"f{index}"], names[f"p{index}"] = receiver.function, receiver.plugin
        names[f"cost{index}"] = receiver.cost
        lines += _write_call(hook, index, receiver.function, timed=timed)
    if receivers:
        lines.append("if failed: finish(failed)")
    lines.append("return answers" if hook in QUESTIONS else "return None")
    return _compile(hook, lines, names)


def compile_adapter(hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` as one that takes all arguments of the hook, and passes on what it asks
    for.
    """
    return _compile(hook, [f"return {_write_expression('f', function)}"], {"f": function})


def _compile(hook: str, body: Sequence[str], names: dict[str, Any]) -> Callable[..., Any]:
    names = {**names, **{f"copy_{name}": make for name, make in COPIES.items()}}
    source = [f"def {hook}({', '.join(HOOK_ARGUMENTS[hook])}):", *(f"    {line}" for line in body)]
    exec(compile("\n".join(source), f"<dispatch of {hook}>", "exec"), names)
    function: Callable[..., Any] = names[hook]
    return function


def _write_call(hook: str, index: int, function: Callable[..., Any], *, timed: bool) -> list[str]:
    body = [f"answer = {_write_expression(f'f{index}', function)}"]
    if timed:
        add = f"cost{index}.seconds += clock() - start; cost{index}.calls += 1"
        body = ["start = clock()", *body, add]
    if hook in QUESTIONS:
        body.append(f"if answer is not None: answers.append((p{index}, answer))")
    return [
        "try:",
        *(f"    {line}" for line in body),
        "except KeyboardInterrupt: drop(failed); raise",
        "except BaseException as error:",
        f"    failed += caught(p{index}, {hook!r}, error)",
    ]


def _write_expression(name: str, function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    return f"{name}({', '.join(_write_argument(parameter) for parameter in parameters)})"


def _write_argument(parameter: inspect.Parameter) -> str:
    name = parameter.name
    value = f"copy_{name}({name})" if name in COPIES else name
    return f"{name}={value}" if parameter.kind is parameter.KEYWORD_ONLY else value
