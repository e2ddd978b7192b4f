"""`metrics.jsonl`: one line per log event, continued without a gap or a double line after a
resume, and behind them what the callbacks cost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl
from trainer_callback.discovery import find_version
from trainer_callback.manager import Plugin

from .config import TrainerConfig

__all__ = ["MetricsFile", "core_callbacks", "read_logged"]

logger: logging.Logger = logging.getLogger("trainer")


class MetricsFile(TrainerCallback):
    """Writes every log event to `OUTPUT_DIR/metrics.jsonl`, and the costs when the run ends.

    Its state is the length of the file at the snapshot, and the lines that could not be written
    yet: a full disk does not end a run. The line of costs comes behind every snapshot, so that a
    resume cuts it off: it is the last line or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._length = 0
        self._unwritten = b""
        self._failed = False

    def on_snapshot_load(self, trainer: TrainerProtocol, checkpoint: Mapping[str, Any]) -> None:
        state = checkpoint["callback_state"].get(type(self).__name__, {})
        self._length = state.get("length", 0)
        self._unwritten = state.get("unwritten", "").encode()

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not trainer.is_main_process:
            return
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not resumed:
            self._length, self._unwritten = 0, b""
        found = os.fstat(self._file).st_size
        if found < self._length:
            logger.warning("%s has lost lines: it continues behind the rest.", self.path)
            self._length = found
        os.ftruncate(self._file, self._length)
        self._failed = False
        self._write(b"")

    def on_log(self, trainer: TrainerProtocol, metrics: Mapping[str, float], step: int) -> None:
        if self._file is None:
            return
        line: dict[str, Any] = {"step": step, "epoch": trainer.epoch}
        for name, value in metrics.items():
            line[name] = value if math.isfinite(value) else str(value)  # JSON knows no NaN
        self._write(_as_json(line))

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        return {"length": self._length, "unwritten": self._unwritten.decode()}

    @hookimpl(trylast=True)  # others may log something in the same event
    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if self._file is None:
            return
        line = {"step": trainer.step, "epoch": trainer.epoch}
        self._write(_as_json({**line, "callback_costs": result.callback_costs}))
        os.close(self._file)
        self._file = None

    def _write(self, line: bytes) -> None:
        """Writes what is there to be written, whole lines or nothing."""
        assert self._file is not None
        content = self._unwritten + line
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file, content[written:], self._length + written)
            self._length, self._unwritten, self._failed = self._length + written, b"", False
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            self._unwritten = content
            if not self._failed:
                self._failed = True
                logger.warning("%s: %s. Its lines wait in memory.", self.path, error.strerror)


def read_logged(path: Path) -> list[bytes]:
    """Returns the lines of the log events, which a resumed run has like one that was left alone;
    the costs, which no two runs have in common, are left out.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and isinstance(json.loads(lines[-1]).get("callback_costs"), dict):
        lines.pop()
    return lines


def _as_json(line: Mapping[str, object]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def core_callbacks(config: TrainerConfig) -> list[Plugin]:
    """Returns the core's own callbacks: the writer of `metrics.jsonl`, where there is a place to
    write.
    """
    if config.output_dir is None:
        return []
    writer = MetricsFile(config.output_dir / "metrics.jsonl")
    return [Plugin(writer, "metrics_file", "trainer-core", find_version("trainer-core"))]
