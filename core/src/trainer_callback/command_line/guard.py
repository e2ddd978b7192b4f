"""What a plugin may not change while it is imported: all that belongs to the whole process is put
back behind it. Of numpy and torch it knows what is loaded already.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TextIO

from .kept_values import VALUES, Restore, keep_value

__all__ = ["stdout_to_stderr", "undo_changes"]


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends to stderr what is written to stdout meanwhile, by child processes too: a command's
    stdout is its own. Whoever replaces, wraps or closes the streams does it to copies.
    """
    streams = sys.stdout, sys.stderr
    _flush(streams)
    saved = _send_to_stderr()
    copies = sys.stdout, sys.stderr = _open_stderr(), _open_stderr()
    try:
        yield
    finally:
        _flush(copies)
        sys.stdout, sys.stderr = streams
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


@contextlib.contextmanager
def undo_changes() -> Iterator[list[str]]:
    """Puts back what is changed meanwhile, and yields a list that names it at the end.

    Threads that are started meanwhile do not keep the process from ending.

    Raises:
        RuntimeError: a KeyboardInterrupt that nobody's Ctrl-C has raised.
    """
    changed: list[str] = []
    restores = [(what, keep()) for what, keep in _KEPT.items()]
    try:
        with stdout_to_stderr(), _watch_ctrl_c() as is_pressed:
            try:
                yield changed
            except KeyboardInterrupt as error:
                if is_pressed():
                    raise
                raise RuntimeError("KeyboardInterrupt without Ctrl-C") from error
    finally:
        changed += [what for what, restore in restores if restore()]


def _flush(streams: tuple[TextIO, ...]) -> None:
    for stream in streams:
        with contextlib.suppress(Exception):  # whatever somebody's stream raises, a closed one too
            stream.flush()


def _send_to_stderr() -> int | None:
    """Returns a copy of stdout's descriptor, which leads to stderr from now on; None where the
    process lacks one of the two.
    """
    try:
        os.fstat(2)
        saved = os.dup(1)
    except OSError:
        return None
    os.dup2(2, 1)
    return saved


def _open_stderr() -> TextIO:
    try:
        return open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    except OSError:
        return io.StringIO()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _watch_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether somebody may have pressed Ctrl-C meanwhile."""
    if not _is_main_thread():
        yield lambda: False
        return
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:
        yield lambda: callable(handler)  # one of somebody's own raises what it likes
        return
    pressed: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: bool(pressed)
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:  # else it is put back with the others
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _write_environment(os: Any, before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _read_handlers(signal: Any) -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _write_handlers(signal: Any, before: Mapping[int, Any]) -> None:
    for number, handler in before.items() if _is_main_thread() else ():
        # None: it was set outside of Python
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _keep_logging() -> Restore:
    """Of the loggers that are there; new ones belong to who makes them."""
    root, manager = logging.getLogger(), logging.getLogger().manager
    disabled, known = manager.disable, [root, *manager.loggerDict.values()]
    loggers = [each for each in known if isinstance(each, logging.Logger)]

    def read(logger: Any) -> dict[str, Any]:
        names = ("level", "propagate", "disabled", "handlers", "filters")
        return {name: copy.copy(getattr(logger, name)) for name in names}

    before = [(logger, read(logger)) for logger in loggers]

    def restore() -> bool:
        changed = [(logger, values) for logger, values in before if read(logger) != values]
        for logger, values in changed:
            vars(logger).update(values)
        if not changed and manager.disable == disabled:
            return False
        logging.disable(disabled)  # forgets which loggers are enabled, too
        return True

    return restore


def _keep_warnings() -> Restore:
    """Filters for one message, module or own category stay: they concern nobody else."""
    context = warnings.catch_warnings()
    context.__enter__()
    before, shows = list(warnings.filters), warnings.showwarning

    def restore() -> bool:
        after, showed = list(warnings.filters), warnings.showwarning
        context.__exit__(None, None, None)
        added = [each for each in after if each not in before]
        narrow = [each for each in added if _is_narrow(each)]
        for action, message, category, module, line in reversed(narrow):
            text, place = (getattr(p, "pattern", p) or "" for p in (message, module))
            warnings.filterwarnings(action, text, category, place, line)  # type: ignore[arg-type]
        is_less = any(each not in after for each in before)
        return len(narrow) < len(added) or is_less or showed is not shows

    return restore


def _is_narrow(warning_filter: tuple[Any, ...]) -> bool:
    _, message, category, module, _ = warning_filter
    return bool(message or module) or category.__module__ != "builtins"


def _keep_threads() -> Restore:
    before = set(threading.enumerate())
    start = threading.Thread.start

    def start_daemon(thread: threading.Thread) -> None:
        thread.daemon = True
        start(thread)

    threading.Thread.start = start_daemon  # type: ignore[method-assign,assignment]

    def restore() -> bool:
        threading.Thread.start = start  # type: ignore[method-assign]
        return bool(set(threading.enumerate()) - before)

    return restore


def _keep_random() -> Restore:
    """Random numbers are put back without a word: that somebody has drawn is no fault."""
    kept = []
    cuda = sys.modules.get("torch.cuda")
    for module, read, write in (
        (random, "getstate", "setstate"),
        (sys.modules.get("numpy.random"), "get_state", "set_state"),
        (sys.modules.get("torch.random"), "get_rng_state", "set_rng_state"),
        (cuda, "get_rng_state_all", "set_rng_state_all"),
    ):
        if module is not None and (module is not cuda or module.is_initialized()):
            kept.append((getattr(module, write), getattr(module, read)()))

    def restore() -> bool:
        for put_back, state in kept:
            put_back(state)
        return False

    return restore


class _ToStderr:
    """What was registered for the end of the process, where it prints to stderr, too."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **named: Any) -> None:
        with stdout_to_stderr():
            self.function(*args, **named)

    def __eq__(self, other: object) -> bool:  # for atexit.unregister
        return self.function == other

    __hash__ = None  # type: ignore[assignment]


def _keep_exit() -> Restore:
    """What is registered stays, without a word: it is of the plugin's own things."""
    register = atexit.register

    def register_aside(function: Any, *args: Any, **named: Any) -> Any:
        register(_ToStderr(function), *args, **named)
        return function

    atexit.register = register_aside  # type: ignore[assignment]

    def restore() -> bool:
        atexit.register = register
        return False

    return restore


_KEPT: Final[Mapping[str, Callable[[], Restore]]] = {
    "set an environment variable": keep_value(
        "os", lambda os: dict(os.environ), _write_environment
    ),
    "set a signal handler": keep_value("signal", _read_handlers, _write_handlers),
    "configured logging": _keep_logging,
    "set filters of warnings": _keep_warnings,
    "started a thread": _keep_threads,
    "drew random numbers": _keep_random,
    "registered for the end": _keep_exit,
    **VALUES,
}
"""What somebody did to the process -> what undoes it."""
