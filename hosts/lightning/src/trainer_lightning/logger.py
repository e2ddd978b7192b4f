"""What the module logs, as one of the trainer's loggers is handed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .framework import DummyLogger

__all__ = ["RunLogger"]

_OWN: Final = frozenset({"loss", "train_loss", "grad_norm", "learning_rate", "skipped_updates"})
"""The run has these itself."""

_TAKEN: Final = frozenset({"step", "epoch", "_event", "_time"})
"""No names of metrics: every line of metrics.jsonl has them."""


class RunLogger(DummyLogger):  # type: ignore[misc]
    """Sends the metrics on, and leaves out those that the run has."""

    def __init__(self, send: Callable[[Mapping[str, float]], None], save_dir: str) -> None:
        """Keeps both.

        Args:
            send: called with the metrics of one event.
            save_dir: where a trainer without a logger writes.
        """
        super().__init__()
        self._send, self._place = send, save_dir

    @property
    def save_dir(self) -> str:
        return self._place

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        others = {
            name: value
            for name, value in metrics.items()
            if name not in _TAKEN and name.removesuffix("_step").removesuffix("_epoch") not in _OWN
        }
        if others:
            self._send(others)
