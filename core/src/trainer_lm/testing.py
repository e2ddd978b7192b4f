"""The command in the process of a test, which finds its process as it was."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from trainer import TrainResult
from trainer_callback.command_line.guard import undo_changes

from .cli import main

__all__ = ["TrainLM", "TrainLMOutcome"]

_TEXT: Final = "the quick brown fox jumps over the lazy dog\n" * 20

_DEFAULTS: Final = """\
dataset: {dataset}
cache_dir: {cache_dir}
output_dir: {output_dir}
device: cpu
n_layer: 1
n_head: 1
n_embd: 8
block_size: 8
batch_size: 8
epochs: 2
"""
"""What a user's own file of defaults would say, so that words and files of a test go before it."""

_PATIENCE: Final = 2.0
"""Seconds that threads of the run have to end behind it."""


@dataclass(frozen=True)
class TrainLMOutcome:
    """What a command has left.

    Attributes:
        exit_code: 0 for a run that has ended well, 2 for one that was refused.
        stdout, stderr: all that it, and what it has started, has printed.
        output_dir: where it writes; None where it has not come so far, or writes nothing.
        result: as `Trainer.train` returns it; None where it did not.
        left: threads that it has started and that run still, which nobody else can end.
    """

    exit_code: int
    stdout: str
    stderr: str
    output_dir: Path | None
    result: TrainResult | None
    left: tuple[str, ...]


class TrainLM:
    """The type of the fixture `train_lm`."""

    def __init__(self, place: Path) -> None:
        """Writes nothing yet.

        Args:
            place: an empty folder.
        """
        self._place = place / "train-lm"
        self._run = place / "run"

    def __call__(self, words: str | Sequence[str] = ()) -> TrainLMOutcome:
        """Runs `train-lm` with `words`, which may be one text, as it is typed; returns what came of
        it, whatever it was.

        Model, text and run are tiny where neither `words` nor a file of options says otherwise. It
        writes to `tmp_path / "run"`, so that `--resume` goes on from the call before. Warnings are
        printed, as by the command, whatever pytest makes of them.
        """
        import torch  # noqa: F401  # before its state is kept

        given = shlex.split(words) if isinstance(words, str) else [str(each) for each in words]
        found: dict[str, Any] = {"output_dir": None, "result": None}
        before = set(threading.enumerate())
        with undo_changes(), _as_in_a_shell(), _capture(self._prepare()) as texts:
            os.environ["XDG_CONFIG_HOME"] = str(self._place)
            try:
                code = main(given, tell=lambda **told: found.update(told))
            except SystemExit as ended:
                code = _read_code(ended)
        stdout, stderr = texts
        return TrainLMOutcome(code, stdout, stderr, **found, left=_wait_for(before))

    def _prepare(self) -> Path:
        """Returns a folder with the text and the defaults."""
        (self._place / "trainer-lm").mkdir(parents=True, exist_ok=True)
        (self._place / "tiny.txt").write_text(_TEXT)
        paths = {
            "dataset": self._place / "tiny.txt",
            "cache_dir": self._place / "tokens",
            "output_dir": self._run,
        }
        quoted = {name: json.dumps(str(path)) for name, path in paths.items()}
        defaults = self._place / "trainer-lm" / "defaults.yaml"
        defaults.write_text(_DEFAULTS.format(**quoted))
        return self._place


@contextlib.contextmanager
def _as_in_a_shell() -> Iterator[None]:
    """The command finds no logging, warnings or paths of the test, and leaves none of its own."""
    root, manager = logging.getLogger(), logging.getLogger().manager
    known = set(manager.loggerDict)
    root.handlers = []  # of pytest; the command would close them
    paths, words = [*sys.path], [*sys.argv]
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            yield
    finally:
        sys.path[:], sys.argv[:] = paths, words
        for name in manager.loggerDict.keys() - known:
            logging.getLogger(name).setLevel(logging.NOTSET)


def _show_warning(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


@contextlib.contextmanager
def _capture(place: Path) -> Iterator[list[str]]:
    """Yields a list that has, behind it, what was written to stdout and to stderr meanwhile, by
    other processes too.
    """
    texts: list[str] = []
    streams = sys.stdout, sys.stderr
    files = [place / "stdout", place / "stderr"]
    saved = [os.dup(1), os.dup(2)]
    opened: list[TextIO] = []
    try:
        for number, file in enumerate(files, 1):
            to = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
            os.dup2(to, number)
            os.close(to)
            opened.append(os.fdopen(number, "w", 1, encoding="utf-8", closefd=False))
        sys.stdout, sys.stderr = opened
        yield texts
    finally:
        for stream in opened:
            with contextlib.suppress(ValueError):  # somebody has closed it
                stream.flush()
        sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        texts += [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _read_code(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    return 1


def _wait_for(before: set[threading.Thread]) -> tuple[str, ...]:
    """Returns the names of threads that are not in `before`, after some patience."""
    end = time.monotonic() + _PATIENCE
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.02)
    return tuple(sorted(thread.name for thread in left))
