"""What callbacks log: from any thread, sent to all of them in the thread of the loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from trainer_callback import LogRecord
from trainer_callback.checks import is_count
from trainer_callback.errors import show

from ..writers.metrics_file import to_floats
from .parts import Parts

__all__ = ["Logs"]

_MOST_WITHIN: Final = 20


class Logs(Parts):
    """Metrics and texts of a run on their way to the callbacks."""

    __slots__ = ()

    def log(self, metrics: Mapping[str, float]) -> None:
        values = to_floats(metrics)
        if not self.queue.is_elsewhere:
            self.position.metrics.update(values)
        self.queue.send(partial(self._send_metrics, values, _now()))

    def _send_metrics(self, values: Mapping[str, float], at: float) -> None:
        with self._within("log", "metrics"):
            self.position.metrics.update(values)
            event = self._number(at, values, {})
            hook, step = self.manager.hook.on_log, self.position.step
            hook(trainer=self._as_trainer, metrics=values, step=step, event=event, time=at)

    def log_text(self, name: str, text: str) -> None:
        for argument, value in (("name", name), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(
                    f"log_text: {argument} must be a str, got {show(value)}. Use str(...), or "
                    "trainer.log for numbers."
                )
        self.queue.send(partial(self._send_text, name, text, _now()))

    def _send_text(self, name: str, text: str, at: float) -> None:
        with self._within("log_text", "name"):
            event = self._number(at, {}, {name: text})
            self.manager.hook.on_log_text(
                trainer=self._as_trainer,
                name=name,
                text=text,
                step=self.position.step,
                event=event,
                time=at,
            )

    def _number(self, at: float, metrics: Mapping[str, float], texts: Mapping[str, str]) -> int:
        """Returns the number of the event that is about to be sent."""
        position = self.position
        event = position.events
        position.events += 1
        if self.journal.is_in_memory:
            place = (position.step, position.epoch)
            self.journal.add(LogRecord(event, at, *place, metrics, texts))
        return event

    def logged(self, since: int = 0) -> Iterator[LogRecord]:
        if not is_count(since, 0):
            raise TypeError(
                f"trainer.logged: since must be the number of an event, got {show(since)}. Leave "
                "it out for all of them."
            )
        if not self.ranks.is_main:
            raise RuntimeError(
                "trainer.logged: the main process alone writes what is logged, and this is process "
                f"{self.ranks.rank}. Ask for trainer.is_main_process first."
            )
        return self.journal.read(since)

    @contextlib.contextmanager
    def _within(self, call: str, what: str) -> Iterator[None]:
        """Refuses a hook that logs, and is called by that, without an end."""
        if self._logs_within >= _MOST_WITHIN:
            raise RuntimeError(
                f"trainer.{call} was called inside on_{call} {_MOST_WITHIN} times in one another, "
                f"each sending the next. Log it in another hook, or only where it is not in "
                f"`{what}`."
            )
        self._logs_within += 1
        try:
            yield
        finally:
            self._logs_within -= 1


def _now() -> float:
    return round(time.time(), 3)  # as `metrics.jsonl` has it
