"""SIGTERM and SIGINT as flags that the loop reads at its boundaries."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Final

__all__ = ["SignalFlags"]

_WATCHED: Final = (signal.SIGTERM, signal.SIGINT)


class SignalFlags:
    """Context manager: while it is open, the first signal of each kind only sets a flag.

    A second SIGINT raises KeyboardInterrupt at once; a second SIGTERM changes nothing, so that it
    cannot break a write. The
    earlier handlers are put back at the end, and an earlier handler that is a Python function is
    called too. Outside the main
    thread nothing is installed, and a child process (a loader worker that inherited the handler)
    ignores SIGTERM's flag.
    """

    def __init__(self) -> None:
        self.terminated = False
        self.interrupted = False
        self._earlier: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    @property
    def raised(self) -> bool:
        """Whether a signal asked for the end."""
        return self.terminated or self.interrupted

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._earlier.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if number == signal.SIGTERM:
            self.terminated = True
            earlier = self._earlier.get(signal.SIGTERM)
            if callable(earlier):
                earlier(number, frame)
            return
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
