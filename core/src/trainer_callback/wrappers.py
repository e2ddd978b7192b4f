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
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final

from .costs import CostMeter, HookCost
from .dispatch import Answer, FailureHandler, Owned, make_pick
from .errors import CallbackError, show
from .hookspecs import HookSpec
from .protocol import StopRequest

__all__ = ["wrap"]

logger: logging.Logger = logging.getLogger("trainer")

_OVER: Final = object()
_STATES: Final = "on_snapshot_save"


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
    pick = make_pick(spec.arguments, wrapper, spec, shared)
    cost = HookCost() if costs is None else costs.cost(wrapper[0].name, spec.name)
    clock = _stopped if costs is None else time.perf_counter

    def call(**arguments: Any) -> Any:
        def start() -> Any:
            given, named = pick([arguments[name] for name in spec.arguments])
            return wrapper[1].function(*given, **named)

        layer = _Layer(spec, wrapper, failures, clock)
        began = clock()
        try:
            return layer.run(start, lambda: inner(**arguments))
        finally:
            cost.calls += 1
            cost.seconds += clock() - began - layer.seconds_inside

    return call


def _stopped() -> float:
    """A clock that costs nothing."""
    return 0.0


class _Layer:
    """One call of one wrapper.

    Attributes:
        seconds_inside: the time of what it stands around.
    """

    def __init__(
        self,
        spec: HookSpec,
        wrapper: Owned,
        failures: FailureHandler,
        clock: Callable[[], float],
    ) -> None:
        self.seconds_inside = 0.0
        self._clock = clock
        self._hook = spec.name
        self._has_answers = spec.answers
        self._plugin = wrapper[0]
        self._failures = failures
        self._named: list[Answer] = []
        self._error: BaseException | None = None

    def run(
        self, start: Callable[[], Generator[None, Any, Any]], inner: Callable[[], Any]
    ) -> list[Answer] | None:
        """Runs the wrapper up to its `yield`, the others, and the wrapper's rest."""
        fault: BaseException | None = None
        generator: Generator[None, Any, Any] | None = None
        try:
            generator = start()
            if next(generator, _OVER) is _OVER:
                fault = RuntimeError("the wrapper did not reach its `yield`")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            fault = error
        entered = self._clock()
        try:
            self._named = inner() or []
        except BaseException as error:
            self._error = error
        self.seconds_inside = self._clock() - entered
        if generator is None or fault is not None:
            return self._end(self._named, fault)
        shown = [self._show(answer) for _, answer in self._named]
        answers, fault = self._resume(generator, [*shown])
        if fault is not None or self._error is not None or not self._has_answers:
            return self._end(self._named, fault)
        try:
            return self._end(self._name(shown, answers), None)
        except TypeError as error:
            return self._end(self._named, error)

    def _resume(
        self, generator: Generator[None, Any, Any], answers: object
    ) -> tuple[object, BaseException | None]:
        """Runs the wrapper behind its `yield`; returns the result, and what it did wrong."""
        try:
            if self._error is not None:
                generator.throw(self._error)
            else:
                generator.send(answers)
            generator.close()
        except StopIteration as stop:
            self._keep_back()
            return stop.value, None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._error = error
            return answers, None if error is self._error else error
        return answers, RuntimeError("the wrapper has a second `yield`")

    def _keep_back(self) -> None:
        """A wrapper may deal with the failure of another callback, but not with Ctrl-C, and not
        where the states of all the others would be lost with it.
        """
        if isinstance(self._error, CallbackError) and self._hook != _STATES:
            logger.warning("%s went on after: %s", self._plugin.label, self._error)
            self._error = None

    def _end(self, named: list[Answer], fault: BaseException | None) -> list[Answer] | None:
        count = 0 if fault is None else self._failures.caught(self._plugin, self._hook, fault)
        if self._error is not None:
            self._failures.drop(count)
            raise self._error
        self._failures.finish(count)
        return named if self._has_answers else None

    def _show(self, answer: Any) -> Any:
        """Returns what the wrapper sees of an answer: of a state a copy."""
        if self._hook != _STATES:
            return answer
        try:
            return copy.deepcopy(answer)
        except Exception:  # which a snapshot will refuse
            return answer

    def _name(self, shown: Sequence[object], answers: object) -> list[Answer]:
        """Returns the answers with the names of whose they are.

        Raises:
            TypeError: they are no list, or lack the state of a callback, or have one too many.
        """
        if not isinstance(answers, list):
            raise TypeError(f"the wrapper must return the list of answers, got {show(answers)}")
        given = [answer for answer in answers if answer is not None]
        if self._hook != _STATES:
            return self._name_in_order(given)
        places = {id(answer): place for place, answer in enumerate(shown)}
        own = [answer for answer in given if id(answer) not in places]
        kept = {places[id(answer)] for answer in given if id(answer) in places}
        for place, (plugin, _) in enumerate(self._named):
            if place not in kept:
                raise TypeError(
                    f"the wrapper changed the state of {plugin.label}, or left it out. Return the "
                    "answers that it was sent; it may add one of its own"
                )
        if len(own) > 1 or (own and any(plugin is self._plugin for plugin, _ in self._named)):
            raise TypeError(f"the wrapper added {show(own)}, and a callback has one state")
        return [*self._named, *((self._plugin, answer) for answer in own)]

    def _name_in_order(self, given: Sequence[Any]) -> list[Answer]:
        """Those at the beginning and at the end that are the same as before are still those of the
        others; what is between them is the wrapper's own doing, unless it is an object that another
        has made.
        """
        first = _count_same(self._named, given)
        rest, left = self._named[first:], given[first:]
        last = _count_same(rest[::-1], left[::-1])
        middle = left[: len(left) - last]
        makers = {
            id(answer): plugin for plugin, answer in self._named if isinstance(answer, StopRequest)
        }
        return [
            *self._named[:first],
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
