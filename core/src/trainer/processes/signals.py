"""SIGTERM and SIGINT as flags that the loop reads at its boundaries, and processes beside it that
must not die of them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Final

__all__ = ["SignalFlags", "WorkerShield", "held_signals"]

logger: logging.Logger = logging.getLogger("trainer")

_WATCHED: Final = (signal.SIGTERM, signal.SIGINT)


class SignalFlags:
    """What signals have asked for. While `caught` is open, the first of each kind only sets a flag.

    A second SIGINT raises KeyboardInterrupt at once; a second SIGTERM changes nothing, so that it
    cannot break a write. The earlier handlers are put back at the end; one of SIGTERM that is a
    Python function is called too, and what it raises (SystemExit, mostly) is raised at the end.
    A signal that was ignored stays ignored. Outside the main thread nothing is installed, and a
    child process that inherited the handler does nothing.
    """

    def __init__(self) -> None:
        self.terminated: bool = False
        self.interrupted: bool = False
        self._earlier: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()
        self._late: BaseException | None = None

    @property
    def raised(self) -> bool:
        """Whether a signal asked for the end."""
        return self.terminated or self.interrupted

    @contextlib.contextmanager
    def caught(self) -> Iterator[SignalFlags]:
        """Catches the signals; also where nobody comes to close it, and it is collected."""
        self._install()
        try:
            yield self
        finally:
            self._put_back()
        late, self._late = self._late, None
        try:
            if late is not None:
                raise late
        finally:
            del late  # whose traceback has this frame

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._earlier[number] = signal.signal(number, self._handle)
        else:
            logger.warning(
                "this run is not in the main thread, in which alone signals can be caught: SIGTERM "
                "and Ctrl-C end it at once, without a snapshot."
            )

    def _put_back(self) -> None:
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
                self._chain(earlier, number, frame)
            return
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _chain(self, earlier: Callable[..., object], number: int, frame: FrameType | None) -> None:
        try:
            earlier(number, frame)
        except BaseException as error:
            self._late = error


@contextlib.contextmanager
def held_signals(*, forks: bool) -> Iterator[None]:
    """Holds signals back from this thread, and from the workers that it starts meanwhile: those
    would have none of their handlers yet. A `WorkerShield` lets them through.

    Args:
        forks: the workers are forked from this process, not started by exec.
    """
    if not forks:
        resource_tracker.ensure_running()  # it lets signals through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerShield:
    """A loader's `worker_init_fn`: signals that go to a whole group of processes (Ctrl-C, a batch
    system's SIGTERM) leave the workers alive, so that the run can finish its update. SIGTERM from
    the process that they load for, which is how torch ends a worker, still ends it, and so does
    the death of that process, whatever the worker is doing.
    """

    def __init__(self, then: Callable[[int], object] | None) -> None:
        """Wraps the loader's own `worker_init_fn`."""
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Runs in the worker, before its first batch."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigtimedwait"):  # not on macOS, where a group's SIGTERM ends workers
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_obey_parent, daemon=True).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if self.then is not None:
            self.then(worker_id)


def _obey_parent() -> None:
    """Ends this worker when the process that it loads for says so, or within a second of its death:
    nobody else would, and torch's own watch sees no death that came before it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    is_child = os.getppid() == parent.pid  # else a fork server's, or an orphan already
    while os.getppid() == parent.pid if is_child else parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
