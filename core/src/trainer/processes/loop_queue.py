"""Calls that wait for the thread of the loop: those of other threads, and those from before all
callbacks have started.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["LoopQueue"]


class LoopQueue:
    """Makes calls in the thread of the loop, at once or at the next boundary; loses none.

    A run `start`s, `open`s when all callbacks have started, and is over at its `close`.

    Attributes:
        waiting: the calls that wait; read it, and leave it alone.
    """

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._thread: int | None = None
        self._is_open = self._is_over = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another thread than that of the run under way."""
        return self._thread is not None and threading.get_ident() != self._thread

    def start(self) -> None:
        """A run begins in this thread; what is sent waits for `open`."""
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._is_open = self._is_over = False

    def check_process(self) -> None:
        """Raises a RuntimeError in a process that was forked off the run's: its files are one
        process's alone.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "this is another process than that of the trainer, which would not hear of this. "
                "Send it there, and call `trainer` in a hook; end what you have forked off with "
                "os._exit()."
            )

    def check_thread(self) -> None:
        """Raises a RuntimeError in another thread, or process, than that of the loop: what all
        processes make together would come at other moments there.
        """
        self.check_process()
        if self.is_elsewhere:
            raise RuntimeError(
                "this is another thread than that of the loop, and all processes have to come here "
                "at the same place. Call it in a hook."
            )

    def send(self, call: Callable[[], None]) -> None:
        """Makes `call` now, where this is the thread of an open run; else it waits.

        Raises:
            RuntimeError: the run is over, or this is a process that was forked off.
        """
        self.check_process()
        if self._is_open and not self.is_elsewhere:
            call()
            return
        with self._lock:  # so that none comes behind the last look of `close`
            if self._is_over:
                raise RuntimeError(
                    "the run is over, so nobody would hear of this. Call it while the run goes "
                    "on, at the latest in on_train_end; end and join your threads there."
                )
            self.waiting.append(call)

    def make_calls(self) -> None:
        """Makes the calls that have waited."""
        while self.waiting:
            self.waiting.popleft()()

    def open(self) -> None:
        """From now on calls of this thread are made at once; those that have waited come first."""
        self.make_calls()
        self._is_open = True

    def close(self) -> None:
        """Makes the calls that have waited; later ones are refused until the next `start`."""
        with self._lock:
            self._is_open, self._is_over = False, True
        self._thread = None
        self.make_calls()
