"""What callbacks log: from any thread, sent to all of them in the thread of the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

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
        self.queue.send(partial(self._send_metrics, values))

    def _send_metrics(self, values: Mapping[str, float]) -> None:
        with self._within("log", "metrics"):
            self.position.metrics.update(values)
            self.callbacks.hook.on_log(
                trainer=self._as_trainer, metrics=values, step=self.position.step
            )

    def log_text(self, name: str, text: str) -> None:
        for argument, value in (("name", name), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(
                    f"log_text: {argument} must be a str, got {show(value)}. Use str(...), or "
                    "trainer.log for numbers."
                )
        self.queue.send(partial(self._send_text, name, text))

    def _send_text(self, name: str, text: str) -> None:
        with self._within("log_text", "name"):
            hook = self.callbacks.hook.on_log_text
            hook(trainer=self._as_trainer, name=name, text=text, step=self.position.step)

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
