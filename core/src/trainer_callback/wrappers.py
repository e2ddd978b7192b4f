"""Hook wrappers: generators that stand around all other implementations of a hook.

They behave as pluggy documents them, in the new style (`wrapper=True`: what they return is the
result) and the old one (`hookwrapper=True`: they get a `pluggy.Result`), with one difference: a
wrapper that fails is blamed by name and does not keep the others from the event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Final

import pluggy

from .dispatch import QUESTIONS, Answer, FailureHandler, Receiver, compile_adapter
from .errors import CallbackError

__all__ = ["wrap"]

logger: logging.Logger = logging.getLogger("trainer")

_OVER: Final = object()


def wrap(
    hook: str,
    inner: Callable[..., Any],
    wrapper: Receiver,
    *,
    old: bool,
    timed: bool,
    failures: FailureHandler,
) -> Callable[..., Any]:
    """Returns `inner` with `wrapper` around it.

    Args:
        inner: the compiled hook, or the next wrapper around it.
        old: the wrapper is of pluggy's old style.
        timed: add the wrapper's own time to its cost, that of `inner` left out.
    """
    start = compile_adapter(hook, wrapper.function)

    def call(**arguments: Any) -> Any:
        layer = _Layer(hook, wrapper, failures, old=old)
        return layer.run(lambda: start(**arguments), lambda: inner(**arguments))

    def timed_call(**arguments: Any) -> Any:
        layer = _Layer(hook, wrapper, failures, old=old)
        inside = 0.0

        def timed_inner() -> Any:
            nonlocal inside
            entered = time.perf_counter()
            try:
                return inner(**arguments)
            finally:
                inside = time.perf_counter() - entered

        began = time.perf_counter()
        try:
            return layer.run(lambda: start(**arguments), timed_inner)
        finally:
            wrapper.cost.calls += 1
            wrapper.cost.seconds += time.perf_counter() - began - inside

    return timed_call if timed else call


class _Layer:
    """One call of one wrapper."""

    def __init__(
        self, hook: str, wrapper: Receiver, failures: FailureHandler, *, old: bool
    ) -> None:
        self._hook = hook
        self._plugin = wrapper.plugin
        self._failures = failures
        self._old = old
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
        try:
            self._named = inner() or []
        except BaseException as error:
            self._error = error
        answers: object = [answer for _, answer in self._named]
        if generator is not None and fault is None:
            answers, fault = self._resume(generator, answers)
        if fault is None and self._hook in QUESTIONS and not isinstance(answers, list):
            fault = TypeError(f"the wrapper must return the list of answers, got {answers!r}")
        return self._end(answers, fault)

    def _resume(
        self, generator: Generator[None, Any, Any], answers: object
    ) -> tuple[object, BaseException | None]:
        """Runs the wrapper behind its `yield`; returns the result, and what it did wrong."""
        outcome = pluggy.Result(answers, self._error)
        try:
            if self._old:
                generator.send(outcome)
            elif self._error is not None:
                generator.throw(self._error)
            else:
                generator.send(answers)
        except StopIteration as stop:
            if not self._old:
                self._keep_back()
                return stop.value, None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._error = error
            return answers, None if error is self._error else error
        else:
            generator.close()
            return answers, RuntimeError("the wrapper has a second `yield`")
        try:
            answers = outcome.get_result()
        except BaseException as error:
            return answers, None if error is self._error else error
        self._keep_back()
        return answers, None

    def _keep_back(self) -> None:
        """A wrapper may deal with the failure of another callback, but not with Ctrl-C."""
        if isinstance(self._error, CallbackError):
            logger.warning("%s went on after: %s", self._plugin.label, self._error)
            self._error = None

    def _end(self, answers: object, fault: BaseException | None) -> list[Answer] | None:
        count = 0 if fault is None else self._failures.caught(self._plugin, self._hook, fault)
        if self._error is not None:
            self._failures.drop(count)
            raise self._error
        self._failures.finish(count)
        if self._hook not in QUESTIONS:
            return None
        return self._named if fault is not None else self._name(answers)

    def _name(self, answers: Any) -> list[Answer]:
        """Puts the names back; a list of another length is the wrapper's own answer."""
        given = [answer for answer in answers if answer is not None]
        if len(given) != len(self._named):
            return [(self._plugin, answer) for answer in given]
        return [(plugin, answer) for (plugin, _), answer in zip(self._named, given, strict=True)]
