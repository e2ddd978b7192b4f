"""A tracker whose client library lives in a process of its own: what that imports, starts, prints
and sets is no part of the run, and nothing of it is left behind.

A line of JSON for each call, and one for its answer. This room knows no tracker.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from .outbox import Tracker
from .records import LogRecord

__all__ = ["TrackerProcess", "serve_tracker"]

logger: logging.Logger = logging.getLogger("trainer")

_LOOK: Final = 0.1
_PATIENCE: Final = 13.5
_GRACE: Final = 1.0


class TrackerProcess:
    """The side of the run. The other one is a module that calls `serve_tracker` as a program.

    Its temporary files are in a folder of its own, which goes with it.

    Args:
        module: the program, as `python -m` takes it.
        arguments: plain values that it makes its tracker of.
        log: file for what the library prints.
        environment: variables for it, beside those of the run.
    """

    def __init__(
        self,
        module: str,
        arguments: Mapping[str, object],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._arguments = dict(arguments)
        self._log = log
        self._environment = dict(environment or {})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._temporary = ""
        self._is_lost = self._is_closed = False

    def start(self) -> None:
        """Starts the process, which loads the library and makes its tracker."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:  # `close` may come while another thread is here
            self._end(0)
            if self._is_closed:
                raise RuntimeError("the tracker is closed")
            self._temporary = tempfile.mkdtemp(prefix="trainer-tracker-")
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._module, str(os.getpid()), self._temporary],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **self._environment, "TMPDIR": self._temporary},
                    start_new_session=True,  # Ctrl-C is for the run, which ends this
                )
        self._ask(["start", self._arguments])

    def open(self, known: int) -> int:
        """Opens the tracker, in a new process where the one before has failed."""
        if self._process is None or self._is_lost:
            self.start()
        return int(self._ask(["open", known]))

    def send(self, records: Sequence[LogRecord]) -> None:
        """Hands on events."""
        self._ask(["send", [asdict(record) for record in records]])

    def finish(self, status: str) -> None:
        """Hands on how the run has ended."""
        self._ask(["finish", status])

    def save_final(self, path: Path) -> None:
        """Hands on where the finished model is."""
        self._ask(["save_final", str(path)], spares=True)

    def close(self) -> None:
        """Ends the process: it closes the tracker, which has some seconds for it, unless it failed
        or has not answered.

        Raises:
            RuntimeError: it could not be closed, or not in time.
        """
        with self._lock:
            self._is_closed = True
            answer = self._end(_PATIENCE)
        if answer is not None:
            self._read(answer)

    def _end(self, patience: float) -> str | None:
        """Ends the process, if there is one; returns its last answer, and None where it was lost
        before.
        """
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return None
        with contextlib.suppress(OSError):
            if self._is_lost:
                process.kill()
            else:
                process.stdin.write(json.dumps(["close", None]) + "\n")
                process.stdin.flush()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _wait_for_heirs(process.stdin)
        with contextlib.suppress(OSError):
            process.stdin.close()
        with process.stdout:
            answer = process.stdout.readline()
        shutil.rmtree(self._temporary, ignore_errors=True)
        return None if self._is_lost else answer

    def _ask(self, question: object, *, spares: bool = False) -> Any:
        """Returns the answer. After an error the process is not asked again: the next `open` makes
        a new one, but where it `spares` what was done before.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("its process is not there")
        self._is_lost = True  # until there is an answer
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        self._is_lost = not (answer and spares)
        value = self._read(answer)
        self._is_lost = False
        return value

    def _read(self, answer: str) -> Any:
        if not answer:
            raise RuntimeError(f"its process has ended, or did not do so in time; see {self._log}")
        found = json.loads(answer)
        for level, text in found["said"]:
            logger.log(level, "%s", text)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found.get("value")


def _wait_for_heirs(stdin: IO[str]) -> None:
    """Waits, a moment at most, for what the process had started: a library's own process ends a
    little after it. Whoever has inherited its standard input keeps this pipe whole.
    """
    pipe = select.poll()
    pipe.register(stdin, 0)  # errors alone: nobody reads any more
    pipe.poll(_GRACE * 1000)


def serve_tracker(make: Callable[..., Tracker]) -> None:
    """Answers a `TrackerProcess` until it has no more questions, or its process is gone. What the
    tracker logs for `trainer` is logged there. Does not return.
    """
    parent, temporary = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_follow, args=(parent, temporary), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    said = _Said()
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    tracker: Tracker | None = None
    for what, argument in itertools.chain(map(json.loads, sys.stdin), [("close", None)]):
        found: dict[str, object] = {}
        try:
            if what == "start":
                tracker = make(**argument)
            if tracker is not None:
                found["value"] = _call(tracker, what, argument)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            print(json.dumps({**found, "said": said.take()}), file=answers, flush=True)
        if what == "close":
            break
    shutil.rmtree(temporary, ignore_errors=True)
    sys.stderr.flush()
    os._exit(0)  # Python takes a second or two to take a large library apart; a run waits for it


class _Said(logging.Handler):
    """Keeps what is logged, with its level, for the next answer."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        taken, self._texts = self._texts, []
        return taken


def _call(tracker: Tracker, what: str, argument: Any) -> int | None:
    if what == "open":
        return tracker.open(argument)
    if what == "send":
        tracker.send([LogRecord(**record) for record in argument])
    elif what == "finish":
        tracker.finish(argument)
    elif what == "save_final":
        tracker.save_final(Path(argument))
    elif what == "start":
        tracker.start()
    else:
        tracker.close()
    return None


def _follow(parent: int, temporary: str) -> None:
    """Ends this process with the run's: one that is started anew must find nobody here."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(1)
