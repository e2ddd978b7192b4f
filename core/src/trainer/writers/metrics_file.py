"""`metrics.jsonl`: one line per log event, continued without a gap or a double line after a
resume, and behind them how the run ended and what the callbacks cost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl
from trainer_callback.errors import show

__all__ = ["MetricsFile", "read_logged", "to_floats"]

logger: logging.Logger = logging.getLogger("trainer")

_COLUMNS: Final = ("step", "epoch", "_event", "_time")
"""What each line has beside the metrics: `_event` is its number, `_time` when it was logged. A
metric of somebody's may well be called `time`.
"""
_TIME: Final = re.compile(rb'^(\{"step": \d+, "epoch": \d+, "_event": \d+), "_time": [\d.]+')
_CHUNK: Final = 1 << 20


class MetricsFile(TrainerCallback):
    """Writes every log event to `OUTPUT_DIR/metrics.jsonl`, texts under `text`, and the end of the
    run with its costs.

    Its state is the length of the file at the snapshot, and the lines that could not be written
    yet: a full disk does not end a run. The line of costs comes when nobody can log any more, and
    behind every snapshot, so that a resume cuts it off: it is the last line or none.
    """

    logs_metrics: tuple[str, ...] | None = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._length = 0
        self._unwritten = b""
        self._lock = threading.RLock()  # other threads read while the loop's writes
        self._failed = False
        self._is_gone = self._is_begun = False
        self._costs: dict[str, Any] | None = None

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self.rewind(state or {})  # once more: others may have read before

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Goes to the state of a snapshot, or with none to the beginning."""
        self._length = state.get("length", 0)
        self._unwritten = state.get("unwritten", "").encode()

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not trainer.is_main_process:
            return
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._failed, self._is_gone, self._costs, self._is_begun = False, False, None, False

    def on_epoch_start(self, trainer: TrainerProtocol, epoch: int) -> None:
        self._begin()

    def _begin(self) -> None:
        """Cuts off what is behind the snapshot, once; a run that only looks leaves it there."""
        if self._file is None or self._is_begun:
            return
        self._is_begun = True
        found = os.fstat(self._file).st_size
        if found < self._length:
            logger.warning("%s has lost lines: it continues behind the rest.", self.path)
            self._length = found
        os.ftruncate(self._file, self._length)
        self._write(b"")

    @hookimpl(tryfirst=True)  # others may log in it, and what they log comes behind
    def on_log(
        self,
        trainer: TrainerProtocol,
        metrics: Mapping[str, float],
        step: int,
        event: int,
        time: float,
    ) -> None:
        if self._file is None:
            return
        self._begin()
        columns: dict[str, Any] = {}
        for name, value in metrics.items():
            columns[name] = value if math.isfinite(value) else str(value)  # JSON knows no NaN
        self._write(_as_line(step, trainer.epoch, event, time, columns))

    @hookimpl(tryfirst=True)
    def on_log_text(  # noqa: PLR0917
        self,
        trainer: TrainerProtocol,
        name: str,
        text: str,
        step: int,
        event: int,
        time: float,
    ) -> None:
        if self._file is not None:
            self._begin()
            self._write(_as_line(step, trainer.epoch, event, time, {"text": {name: text}}))

    def read_lines(self, start: int = 0) -> Iterator[bytes]:
        """Yields the lines that the run has so far, from byte `start` on, where a line begins;
        those of killed runs behind the snapshot are left out. From any thread.
        """
        with self._lock:
            end, unwritten = self._length, self._unwritten
            try:
                file = os.open(self.path, os.O_RDONLY) if self._file is None else os.dup(self._file)
            except FileNotFoundError:  # nothing was logged yet
                file, end = os.open(os.devnull, os.O_RDONLY), 0
        try:
            yield from _split(file, start, end)
        finally:
            os.close(file)
        yield from unwritten[max(start - end, 0) :].split(b"\n")[:-1]

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        with self._lock:
            self._find_again()
        return {"length": self._length, "unwritten": self._unwritten.decode()}

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        names = ("status", "stop_reason", "stop_detail", "stopped_by")
        ended = {name: getattr(result, name) for name in names}
        line = {"step": trainer.step, "epoch": trainer.epoch, "ended": ended}
        self._costs = {**line, "callback_costs": result.callback_costs}

    def close(self) -> None:
        with self._lock:
            if self._file is None:
                return
            self._find_again()
            if self._costs is not None and self._is_begun:
                self._write(_as_json(self._costs))
            os.close(self._file)
            self._file = None

    def _find_again(self) -> None:
        """Writes the file anew where another or none has its name now: its lines are in the open
        file still. Another one is kept beside it.
        """
        if self._file is None:
            return
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self._file)):
                return
        except OSError:  # it is gone
            pass
        was_gone, self._is_gone = self._is_gone, True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(f"{self.path}.found")
            content = os.pread(self._file, self._length, 0)
            new = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            if not was_gone:
                text = "%s was removed while the run goes on, and cannot be written anew: %s."
                logger.warning(text, self.path, error.strerror)
            return
        os.close(self._file)
        self._file, self._length, self._unwritten = new, 0, content + self._unwritten
        self._write(b"")
        if not was_gone:
            text = "%s was removed or replaced while the run goes on: it is written anew, whole."
            logger.warning(text, self.path)

    def _write(self, line: bytes) -> None:
        """Writes what is there to be written, whole lines or nothing."""
        assert self._file is not None
        content = self._unwritten + line
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file, content[written:], self._length + written)
            with self._lock:
                self._length, self._unwritten = self._length + written, b""
            self._failed = False
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            self._unwritten = content
            if not self._failed:
                self._failed = True
                logger.warning("%s: %s. Its lines wait in memory.", self.path, error.strerror)


def read_logged(path: Path) -> list[bytes]:
    """Returns the lines of the log events, which a resumed run has like one that was left alone;
    the costs and the times, which no two runs have in common, are left out.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and isinstance(json.loads(lines[-1]).get("callback_costs"), dict):
        lines.pop()
    return [_TIME.sub(rb"\1", line) for line in lines]


def to_floats(
    metrics: Mapping[str, Any], source: str = "trainer.log", taken: Sequence[str] = _COLUMNS
) -> dict[str, float]:
    """Returns metrics as plain floats; a number is whatever has one value: bool, int, float, a
    scalar of numpy, a tensor with one element.

    Args:
        source: where they come from, for messages.
        taken: names that are refused.

    Raises:
        TypeError: no mapping, a name that is no str, a value that is no number.
        ValueError: a name that every line has already.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{source}: metrics must be a mapping of names to numbers, got {show(metrics)}. Write "
            '{"name": value}.'
        )
    floats: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"{source}: the name of a metric must be a str that is not empty, got "
                f"{show(name)}. Use str(...)."
            )
        if name in taken:
            raise ValueError(
                f"{source}: {name!r} stands in every line of metrics.jsonl already. Give the "
                f"metric another name, such as 'my_{name}'."
            )
        floats[name] = value if type(value) is float else _to_float(name, value, source)
    return floats


def _to_float(name: str, value: Any, source: str) -> float:
    try:
        number = value.item() if hasattr(value, "item") else value  # tensors, numpy
        if hasattr(number, "__float__") and not isinstance(number, complex):
            return float(number)
    except Exception:  # several values, none yet, one that is too large
        pass
    hint = "Use float(...)." if isinstance(value, str) else "Log one number for each name."
    raise TypeError(f"{source}: {name!r} must be a number, got {show(value)}. {hint}")


def _split(file: int, start: int, end: int) -> Iterator[bytes]:
    """Yields the whole lines of an open file from byte `start` to `end`."""
    rest, place = b"", start
    while place < end and (chunk := os.pread(file, min(_CHUNK, end - place), place)):
        place += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _as_line(
    step: int, epoch: int, event: int, time: float, columns: Mapping[str, object]
) -> bytes:
    """Returns the line of a log event. The time has always as many digits: a snapshot has the
    length of the file, which the clock must not change.
    """
    start = f'{{"step": {step}, "epoch": {epoch}, "_event": {event}, "_time": {time:.3f}'
    rest = f", {json.dumps(columns)[1:]}" if columns else "}"
    return f"{start}{rest}\n".encode()


def _as_json(line: Mapping[str, object]) -> bytes:
    return json.dumps(line).encode() + b"\n"
