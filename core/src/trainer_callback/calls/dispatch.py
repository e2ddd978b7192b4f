"""The fast path: the implementations of a hook, in order -> one function that calls them directly.

Nothing of ours stands between that function and a callback's body. `wrappers` puts the wrappers
around it.
"""
# ruff: noqa: PLR0917
# A call takes all arguments that a hook may have.

from __future__ import annotations

import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Sequence,
)
from functools import partial
from operator import itemgetter
from types import FunctionType
from typing import Any, Protocol, cast

from ..arguments import clone
from ..specs import HookSpec
from .costs import CostMeter, HookCost
from .identity import Plugin
from .implementation import Implementation, describe

__all__ = ["Answer", "FailureHandler", "Owned", "find_shared", "make_call", "make_pick"]

Answer = tuple[Plugin, Any]

Owned = tuple[Plugin, Implementation]
"""One implementation, and whose it is."""


class FailureHandler(Protocol):
    """Who is told when a callback raises: `CallbackManager`.

    Failures wait on a stack until their event ends, for events can be nested: a callback that logs
    in `on_epoch_end` sends `on_log` to all.
    """

    def caught(self, plugin: Plugin, hook: str, error: BaseException) -> int: ...

    def finish(self, count: int) -> None: ...

    def drop(self, count: int) -> None: ...


def find_shared(spec: HookSpec, implementations: Iterable[Implementation]) -> frozenset[str]:
    """Returns the tensors that more than one of the implementations of a hook asks for: each must
    have a copy, since it could write to it.
    """
    taken = Counter(name for each in implementations for name in each.asked)
    return frozenset(name for name in spec.tensors if taken[name] > 1)


def make_pick(
    order: Sequence[str], owned: Owned, spec: HookSpec, shared: Iterable[str]
) -> Callable[[Sequence[Any]], Any]:
    """Returns what picks an implementation's own arguments, in its order, from those of the hook,
    which come in `order`, with a copy of what others must not see changed. Where the implementation
    has keyword-only ones, it returns two things: those by position, and those by name.
    """
    plugin, implementation = owned
    asked, named = implementation.asked, implementation.named
    places = [order.index(name) for name in asked]
    found = {**spec.copies, **dict.fromkeys(shared, clone)}
    copies = [(i, found[name]) for i, name in enumerate(asked) if name in found]
    key, name, first = plugin.state_key, describe(plugin.callback), len(asked) - len(named)
    at = places[0] if places else 0  # a slice gives a tuple of one, or of none
    take: Callable[[Any], Any] = (
        itemgetter(*places) if len(places) > 1 else itemgetter(slice(at, at + len(places)))
    )
    if not copies and not named:
        return take

    def pick(given: Sequence[Any]) -> Any:
        own = [*take(given)]
        for place, copy in copies:
            own[place] = copy(own[place], key, name)
        return (own[:first], dict(zip(named, own[first:], strict=True))) if named else own

    return pick


def make_call(
    spec: HookSpec,
    everybody: Sequence[Owned],
    failures: FailureHandler,
    costs: CostMeter | None,
    shared: Iterable[str],
) -> Callable[..., Any]:
    """Returns what calls the implementations in order, with the keyword arguments of the hook.

    One that raises does not keep the others from the event: `failures.caught` is told at once and
    `failures.finish` at the end, which decides whether to raise. KeyboardInterrupt is the user's
    and passes at once.

    Args:
        costs: where the time of each call is added up, or None.
        shared: the arguments of which each gets a copy, as `find_shared` found them.

    Returns:
        Of a hook whose answers are used a function that returns a list of `(plugin, answer)` of
        those that did not answer None, or None if that would be empty; else one that returns None.
    """
    event = _Event(spec, everybody, failures)
    copied = {*spec.copies, *shared}
    counts = Counter(name for _, each in everybody for name in each.asked)
    order = sorted(spec.arguments, key=lambda name: -counts[name])
    asked = everybody[0][1].asked
    if all(each.asked == asked and not each.named for _, each in everybody):
        order = sorted(order, key=[*asked, *order].index)
        if costs is None and len(asked) <= 3 and copied.isdisjoint(asked):
            make = _call_one if len(everybody) == 1 else _call_alike
            return _take_by_name(make(event, len(asked)), spec, order)
    rows = []
    for function, (plugin, each) in zip(event.functions, everybody, strict=True):
        count = len(each.asked)
        is_plain = list(each.asked) == order[:count] and not each.named and count <= 2
        is_plain = is_plain and copied.isdisjoint(each.asked)
        pick = make_pick(order, (plugin, each), spec, shared)
        cost = None if costs is None else costs.cost(plugin.name, spec.name)
        rows.append((function, count if is_plain else -2 if each.named else -1, pick, cost))
    return _take_by_name(_call_each(event, rows), spec, order)


class _Event:
    """What comes of the calls of one hook: whose answer it is, whose failure.

    Attributes:
        functions: of the implementations, in order; no object is there twice.
    """

    def __init__(
        self, spec: HookSpec, everybody: Sequence[Owned], failures: FailureHandler
    ) -> None:
        self._spec = spec
        self._failures = failures
        self.functions: list[Callable[..., Any]] = []
        self._owners: dict[int, Plugin] = {}
        for plugin, each in everybody:
            is_there = id(each.function) in self._owners
            self.functions.append(partial(each.function) if is_there else each.function)
            self._owners[id(self.functions[-1])] = plugin

    def finish(self, count: int) -> None:
        """Passes on; a bound method of `failures` would hold them, which may be a weak proxy."""
        self._failures.finish(count)

    def answered(
        self, answers: list[Answer] | None, function: object, answer: object
    ) -> list[Answer] | None:
        """Returns `answers` with this one; of a hook without answers refuses what nobody would ever
        run. Other answers are of no use there, and do no harm.
        """
        if self._spec.answers:
            answers = [] if answers is None else answers
            answers.append((self._owners[id(function)], answer))
            return answers
        if isinstance(answer, (Coroutine, Generator, AsyncGenerator)):
            if isinstance(answer, Coroutine):
                answer.close()  # or Python would warn of it, somewhere else
            raise TypeError(
                f"it answered a {type(answer).__name__}, whose body nobody would run. Run it in "
                "the hook."
            )
        return None

    def caught(self, failed: int, function: object, error: BaseException) -> int:
        """Returns how many failures wait now; `failed` did before. Ctrl-C waits for nobody."""
        if isinstance(error, KeyboardInterrupt):
            self._failures.drop(failed)
            try:
                raise error
            finally:
                del error  # whose traceback has this frame
        return failed + self._failures.caught(self._owners[id(function)], self._spec.name, error)


def _call_one(event: _Event, count: int) -> Callable[..., Any]:
    """Returns what calls one function, which asks for the first `count` arguments. It is written
    out for each number, as `_call_alike` is: a branch costs half of a call.
    """
    answered, caught, finish = event.answered, event.caught, event.finish
    one = event.functions[0]

    def call_0(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        try:
            return None if (answer := one()) is None else answered(None, one, answer)
        except BaseException as error:
            return finish(caught(0, one, error))

    def call_1(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        try:
            return None if (answer := one(a)) is None else answered(None, one, answer)
        except BaseException as error:
            return finish(caught(0, one, error))

    def call_2(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        try:
            return None if (answer := one(a, b)) is None else answered(None, one, answer)
        except BaseException as error:
            return finish(caught(0, one, error))

    def call_3(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        try:
            return None if (answer := one(a, b, c)) is None else answered(None, one, answer)
        except BaseException as error:
            return finish(caught(0, one, error))

    return (call_0, call_1, call_2, call_3)[count]


def _call_alike(event: _Event, count: int) -> Callable[..., Any]:  # noqa: C901
    """Returns what calls functions that all ask for the first `count` arguments."""
    answered, caught, finish = event.answered, event.caught, event.finish
    functions = tuple(event.functions)

    def call_0(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        failed, answers = 0, None
        for function in functions:
            try:
                if (answer := function()) is not None:
                    answers = answered(answers, function, answer)
            except BaseException as error:
                failed = caught(failed, function, error)
        return finish(failed) if failed else answers

    def call_1(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        failed, answers = 0, None
        for function in functions:
            try:
                if (answer := function(a)) is not None:
                    answers = answered(answers, function, answer)
            except BaseException as error:
                failed = caught(failed, function, error)
        return finish(failed) if failed else answers

    def call_2(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        failed, answers = 0, None
        for function in functions:
            try:
                if (answer := function(a, b)) is not None:
                    answers = answered(answers, function, answer)
            except BaseException as error:
                failed = caught(failed, function, error)
        return finish(failed) if failed else answers

    def call_3(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        failed, answers = 0, None
        for function in functions:
            try:
                if (answer := function(a, b, c)) is not None:
                    answers = answered(answers, function, answer)
            except BaseException as error:
                failed = caught(failed, function, error)
        return finish(failed) if failed else answers

    return (call_0, call_1, call_2, call_3)[count]


def _call_each(  # noqa: C901
    event: _Event, rows: Sequence[tuple[Any, int, Any, HookCost | None]]
) -> Callable[..., Any]:
    """Returns what calls each function with its own arguments, and adds up its time.

    Args:
        rows: function; how many of the first arguments it asks for, or -1: others, or -2: some by
            name; what picks them then; its cost, or None.
    """
    answered, caught, finish = event.answered, event.caught, event.finish
    clock = time.perf_counter

    def call(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        failed, answers, start = 0, None, 0.0
        for function, count, pick, cost in rows:
            try:
                if cost is not None:
                    start = clock()
                if count == 1:
                    answer = function(a)
                elif count == 2:
                    answer = function(a, b)
                elif count == 0:
                    answer = function()
                elif count == -1:
                    answer = function(*pick((a, b, c, d, e, f)))
                else:
                    given, named = pick((a, b, c, d, e, f))
                    answer = function(*given, **named)
                if cost is not None:
                    cost.seconds += clock() - start
                    cost.calls += 1
                if answer is not None:
                    answers = answered(answers, function, answer)
            except BaseException as error:
                failed = caught(failed, function, error)
        return finish(failed) if failed else answers

    return call


def _take_by_name(
    call: Callable[..., Any], spec: HookSpec, order: Sequence[str]
) -> Callable[..., Any]:
    """Returns `call`, whose arguments a, b, c ... have the names in `order` now: hooks are called
    by keyword, so that what is passed on first may be any of them.
    """
    function = cast(FunctionType, call)
    code, count = function.__code__, len(order)
    names = (*order, *code.co_varnames[count:])
    function.__code__ = code.replace(co_name=spec.name, co_varnames=names)
    function.__name__ = function.__qualname__ = spec.name
    function.__defaults__ = (None,) * (6 - count)  # of those that the hook does not have
    return call
