"""A tracker whose client library lives in a process of its own: what that imports, starts, prints
and sets is no part of the run, and nothing of it is left behind.

A line of JSON for each call, and one for its answer. This room knows no tracker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from .outbox import Tracker
from .records import LogRecord

__all__ = ["TrackerProcess", "serve_tracker"]

logger: logging.Logger = logging.getLogger("trainer")

_LOOK: Final = 0.1
_PATIENCE: Final = 12.0


class TrackerProcess:
    """The side of the run. The other one is a module that calls `serve_tracker` as a program.

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
        self._process: subprocess.Popen[str] | None = None
        self._is_lost = False

    def start(self) -> None:
        """Starts the process, which loads the library and makes its tracker."""
        self.close()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C is for the run, which ends this
            )
        self._ask(self._arguments)

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
        self._ask(["save_final", str(path)])

    def close(self) -> None:
        """Ends the process: it closes the tracker, which has some seconds for it, unless it failed
        or has not answered.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(0 if self._is_lost else _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None and not self._is_lost:
            process.stdout.close()

    def _ask(self, question: object) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the process of the tracker is not there")
        self._is_lost = True  # until there is an answer
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            raise RuntimeError(f"the process of the tracker has ended; see {self._log}")
        found = json.loads(answer)
        for level, text in found["said"]:
            logger.log(level, "%s", text)
        if "error" in found:
            raise RuntimeError(found["error"])
        self._is_lost = False
        return found["value"]


def serve_tracker(make: Callable[..., Tracker]) -> None:
    """Answers a `TrackerProcess` until it has no more questions, or its process is gone. What the
    tracker logs for `trainer` is logged there.
    """
    threading.Thread(target=_follow, args=(int(sys.argv[1]),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    said = _Said()
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    tracker: Tracker | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if tracker is None:
                tracker, value = make(**question), None
                tracker.start()
            else:
                value = _call(tracker, *question)
            answer: dict[str, object] = {"value": value}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**answer, "said": said.take()}), file=answers, flush=True)
    if tracker is not None:
        tracker.close()


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
    else:
        tracker.save_final(Path(argument))
    return None


def _follow(parent: int) -> None:
    """Ends this process with the run's: one that is started anew must find nobody here."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)
