"""Work that callbacks have done in the background: a thread for each that asks, in order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from trainer_callback.calls.identity import Plugin
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.errors import show

from ..processes.loop_queue import LoopQueue

__all__ = ["Senders"]

logger: logging.Logger = logging.getLogger("trainer")

Job: TypeAlias = Callable[[], object]

_MOST_WAITING: Final = 1000
_PATIENCE: Final = 14.5
"""Seconds that the end of a run waits for the jobs of all callbacks together: with what it takes to
stop what hangs, 15.
"""
_LOOK: Final = 0.005
"""Seconds between two looks whether they are done."""


class Senders:
    """The background threads of one run's callbacks."""

    def __init__(self, callbacks: CallbackManager, queue: LoopQueue) -> None:
        """Keeps references; failures of jobs go through `queue` to the loop's thread."""
        self._callbacks = callbacks
        self._queue = queue
        self._lock = threading.Lock()
        self._senders: dict[int, _Sender] = {}
        self._is_over = False
        self._left = _PATIENCE
        self._is_cut: Callable[[], bool] = bool

    def start(self, is_cut: Callable[[], bool]) -> None:
        """A run begins; `is_cut` says whether a signal has asked for its end."""
        self._senders, self._is_over, self._left = {}, False, _PATIENCE
        self._is_cut = is_cut

    def submit(
        self, callback: object, function: Callable[..., object], arguments: tuple[Any, ...]
    ) -> bool:
        """Does what `TrainerProtocol.submit` says."""
        self._queue.check_process()
        if not callable(function):
            raise TypeError(
                f"trainer.submit: function must be callable, got {show(function)}. Write "
                "trainer.submit(self, function, argument)."
            )
        sender = self._senders.get(id(callback)) or self._make(callback)
        if self._is_over:
            raise RuntimeError(
                "the run is over, so nobody would wait for this. Submit it while the run goes on, "
                "at the latest in on_final_saved."
            )
        return sender.add(partial(function, *arguments) if arguments else function)

    def _make(self, callback: object) -> _Sender:
        with self._lock:
            found = (each for each in self._callbacks.plugins if each.callback is callback)
            if (plugin := next(found, None)) is None:
                raise TypeError(
                    f"trainer.submit: {show(callback)} is no callback of this run. Write "
                    "trainer.submit(self, function, argument)."
                )
            if id(callback) not in self._senders:
                self._senders[id(callback)] = _Sender(plugin, self._callbacks, self._queue)
            return self._senders[id(callback)]

    def wait(self) -> None:
        """Waits until all jobs are done, what is left of the patience at most, or until a signal;
        then those that are left are dropped, and that is said. Raises what a job has raised that
        the loop's thread could not be told of any more.
        """
        was_cut = self._is_cut()
        end = time.monotonic() + self._left
        try:
            for sender in self._senders.values():
                while sender.count() and time.monotonic() < end:
                    if self._is_cut() and not was_cut:
                        return
                    time.sleep(_LOOK)
        finally:
            self._left = max(end - time.monotonic(), 0.0)
            for sender in self._senders.values():
                if count := sender.drop():
                    text = "%s: %d jobs in the background were not done in time, and are dropped."
                    logger.warning(text, sender.plugin.label, count)
        failures = [sender.take_failure() for sender in self._senders.values()]
        for failure in filter(None, failures):
            failure()

    def close(self) -> None:
        """Ends the threads; one whose job does not end dies with the process."""
        self._is_over = True
        for sender in self._senders.values():
            sender.end()


class _Sender:
    """The thread of one callback, and what waits for it. No lock: who adds a job must not wait for
    the thread.
    """

    def __init__(self, plugin: Plugin, callbacks: CallbackManager, queue: LoopQueue) -> None:
        self.plugin = plugin
        self._callbacks = callbacks
        self._queue = queue
        self._jobs: deque[Job] = deque()  # the first is the one that is done, until it is
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._is_working = self._is_ended = self._is_closed = False
        self._failure: Job | None = None
        name = f"trainer-{plugin.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def _is_off(self) -> bool:
        return self.plugin.name in self._callbacks.switched_off

    def add(self, job: Job) -> bool:
        if len(self._jobs) >= _MOST_WAITING or self._is_closed or self._is_off:
            return False
        self._jobs.append(job)
        self._wakes.put(None)
        return True

    def count(self) -> int:
        """Returns how many jobs are to be done yet, the one under way included."""
        return 0 if self._is_off else len(self._jobs)

    def drop(self) -> int:
        """Forgets what is not done yet, and takes nothing behind it; returns how much it is."""
        count = self.count()
        self._jobs.clear()
        self._is_closed = self._is_closed or count > 0
        return count

    def end(self) -> None:
        self._is_ended = self._is_closed = True
        self._jobs.clear()
        self._wakes.put(None)
        if not self._is_working:
            self._thread.join(1.0)

    def take_failure(self) -> Job | None:
        """Returns what reports the failure that nobody was told of; then there is none."""
        taken, self._failure = self._failure, None
        return taken

    def _work(self) -> None:
        while not self._is_ended:
            self._wakes.get()
            job = next(iter(self._jobs), None)
            if job is None or self._is_off:
                self._jobs.clear()
                continue
            self._is_working = True
            try:
                job()
            except BaseException as error:
                self._fail(error)
            self._is_working = False
            if self._jobs and self._jobs[0] is job:  # else it was dropped meanwhile
                self._jobs.popleft()
            del job  # it may hold a model

    def _fail(self, error: BaseException) -> None:
        """Lets the callback fail at the next boundary; later jobs would come without this one."""
        self._is_closed = True
        if self._is_ended:
            text = "%s failed in the background, behind the end of the run: %r."
            logger.warning(text, self.plugin.label, error)
            return
        report = partial(self._report, error)
        try:
            self._queue.send(report)
        except RuntimeError:  # the loop is over; the end of the run waits for this
            self._failure = report
        self._jobs.clear()

    def _report(self, error: BaseException) -> None:
        self._callbacks.finish(self._callbacks.caught(self.plugin, "submit", error))
