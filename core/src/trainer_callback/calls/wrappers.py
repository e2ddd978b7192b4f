"""Hook wrappers: generators that stand around all other implementations of a hook.

They behave as pluggy documents them for `wrapper=True`, with these differences:

- A wrapper that fails is blamed by name and does not keep the others from the event.
- An answer that it changes or adds is its own. States of others it may read, in copies: to change
  one, or to leave it out, is its failure, and so is keeping back the failure of another which
  could not be asked for its state.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ..errors import CallbackError, show
from ..records import StopRequest
from ..specs import HookSpec
from .costs import CostMeter, HookCost
from .dispatch import Answer, FailureHandler, Owned, make_pick

__all__ = ["wrap"]

logger: logging.Logger = logging.getLogger("trainer")

_EXHAUSTED: Final = object()
_STATES: Final = "on_snapshot_save"

_Wrapper: TypeAlias = Generator[None, Any, Any]

_Outcome: TypeAlias = tuple[list[Answer], BaseException | None, BaseException | None]
"""The answers, what the inner ones raised, and what the wrapper did wrong."""


def wrap(
    spec: HookSpec,
    inner: Callable[..., Any],
    wrapper: Owned,
    failures: FailureHandler,
    *,
    costs: CostMeter | None,
    shared: Iterable[str],
) -> Callable[..., Any]:
    """Returns `inner` with `wrapper` around it.

    Args:
        inner: the function of the hook, or the next wrapper around it.
        costs: where the wrapper's own time is added up, that of `inner` left out; or None.
        shared: as `make_call` takes it.
    """
    cost = HookCost() if costs is None else costs.cost(wrapper[0].name, spec.name)
    clock = time.perf_counter if costs is not None else lambda: 0.0
    layer = _Layer(spec, wrapper, failures, shared)

    def call(**arguments: Any) -> Any:
        answers: list[Answer] = []
        error: BaseException | None = None
        began = clock()
        generator, fault = layer.start(arguments)
        entered = clock()
        try:
            answers = inner(**arguments) or []
        except BaseException as caught:
            error = caught
        left = clock()
        if generator is not None:
            answers, error, fault = layer.resume(generator, answers, error)
        cost.seconds += clock() - left + entered - began
        cost.calls += 1
        try:
            return layer.end(answers, error, fault)
        finally:
            del error, fault  # whose tracebacks have this frame

    return call


class _Layer:
    """One wrapper: what runs before its `yield`, what behind, and what becomes of the answers."""

    def __init__(
        self, spec: HookSpec, wrapper: Owned, failures: FailureHandler, shared: Iterable[str]
    ) -> None:
        self._plugin, self._implementation = wrapper
        self._pick = make_pick(spec.arguments, wrapper, spec, shared)
        self._spec = spec
        self._failures = failures
        self._has_states = spec.name == _STATES

    def start(self, arguments: Mapping[str, Any]) -> tuple[_Wrapper | None, BaseException | None]:
        """Runs the wrapper up to its `yield`; returns it, or what it did wrong."""
        try:
            own = self._pick([arguments[name] for name in self._spec.arguments])
            given, named = own if self._implementation.named else (own, {})
            generator = self._implementation.function(*given, **named)
            if next(generator, _EXHAUSTED) is _EXHAUSTED:
                return None, RuntimeError("the wrapper did not reach its `yield`")
        except KeyboardInterrupt:
            raise
        except BaseException as caught:
            return None, caught
        return generator, None

    def resume(
        self, generator: _Wrapper, named: list[Answer], error: BaseException | None
    ) -> _Outcome:
        """Runs the wrapper behind its `yield`. It may deal with the failure of another callback,
        but not with Ctrl-C, and not where the states of all the others would be lost with it.
        """
        shown = [self._show(answer) for _, answer in named]
        try:
            if error is not None:
                generator.throw(error)
            else:
                generator.send([*shown])
            generator.close()
            return named, error, RuntimeError("the wrapper has a second `yield`")
        except StopIteration as stop:
            if isinstance(error, CallbackError) and not self._has_states:
                logger.warning("%s went on after: %s", self._plugin.label, error)
                error = None
            if error is not None or not self._spec.answers:
                return named, error, None
            return self._name_all(named, shown, stop.value)
        except KeyboardInterrupt as caught:
            return named, caught, None
        except BaseException as caught:
            return named, error, None if caught is error else caught
        finally:
            del error  # whose traceback has this frame

    def end(
        self, answers: list[Answer], error: BaseException | None, fault: BaseException | None
    ) -> list[Answer] | None:
        """Returns the answers; raises what the inner ones raised, else what the wrapper did wrong,
        where that ends the run.
        """
        failed = 0
        if fault is not None:
            failed = self._failures.caught(self._plugin, self._spec.name, fault)
        try:
            if error is not None:
                self._failures.drop(failed)
                raise error
            if failed:
                self._failures.finish(failed)
        finally:
            del error, fault
        return answers if self._spec.answers else None

    def _show(self, answer: Any) -> Any:
        """Returns what the wrapper sees of an answer: of a state a copy."""
        if not self._has_states:
            return answer
        try:
            return copy.deepcopy(answer)
        except Exception:  # which a snapshot will refuse
            return answer

    def _name_all(self, named: list[Answer], shown: Sequence[object], answers: object) -> _Outcome:
        """Returns the answers by name, or what is wrong with them."""
        try:
            return self._name(named, shown, answers), None, None
        except TypeError as caught:
            return named, None, caught

    def _name(self, named: list[Answer], shown: Sequence[object], answers: object) -> list[Answer]:
        """Returns the answers with the names of whose they are.

        Raises:
            TypeError: they are no list, or lack the state of a callback, or have one too many.
        """
        if not isinstance(answers, list):
            raise TypeError(f"the wrapper must return the list of answers, got {show(answers)}")
        given = [answer for answer in answers if answer is not None]
        if not self._has_states:
            return self._name_in_order(named, given)
        places = {id(answer): place for place, answer in enumerate(shown)}
        own = [answer for answer in given if id(answer) not in places]
        kept = {places[id(answer)] for answer in given if id(answer) in places}
        for place, (plugin, _) in enumerate(named):
            if place not in kept:
                raise TypeError(
                    f"the wrapper changed the state of {plugin.label}, or left it out. Return the "
                    "answers that it was sent; it may add one of its own"
                )
        if len(own) > 1 or (own and any(plugin is self._plugin for plugin, _ in named)):
            raise TypeError(f"the wrapper added {show(own)}, and a callback has one state")
        return [*named, *((self._plugin, answer) for answer in own)]

    def _name_in_order(self, named: list[Answer], given: Sequence[Any]) -> list[Answer]:
        """Those at the beginning and at the end that are the same as before are still those of the
        others; what is between them is the wrapper's own doing, unless it is an object that another
        has made.
        """
        first = _count_same(named, given)
        rest, left = named[first:], given[first:]
        last = _count_same(rest[::-1], left[::-1])
        middle = left[: len(left) - last]
        makers = {id(answer): plugin for plugin, answer in named if isinstance(answer, StopRequest)}
        return [
            *named[:first],
            *((makers.get(id(answer), self._plugin), answer) for answer in middle),
            *rest[len(rest) - last :],
        ]


def _count_same(named: Sequence[Answer], given: Sequence[Any]) -> int:
    """Returns how many answers at the beginning are the same."""
    count = 0
    for (_, one), other in zip(named, given, strict=False):
        if one is not other:
            break
        count += 1
    return count
