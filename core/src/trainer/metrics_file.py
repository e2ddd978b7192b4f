"""`metrics.jsonl`: one line per log event, continued without a gap or a double line after a
resume.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer_callback import TrainerCallback, TrainerProtocol
from trainer_callback.discovery import find_version
from trainer_callback.manager import Plugin

from .config import TrainerConfig

__all__ = ["MetricsFile", "core_callbacks"]


class MetricsFile(TrainerCallback):
    """Writes every log event to `OUTPUT_DIR/metrics.jsonl`. Its state is the length of the file at
    the snapshot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._length: int | None = None

    def on_snapshot_load(self, trainer: TrainerProtocol, checkpoint: Mapping[str, Any]) -> None:
        self._length = checkpoint["callback_state"].get(type(self).__name__, {}).get("length")

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.seek(0, os.SEEK_END)
        if self._length is not None and self._length <= self._file.tell():
            self._file.truncate(self._length)
            self._file.seek(self._length)

    def on_log(self, trainer: TrainerProtocol, metrics: Mapping[str, float], step: int) -> None:
        if self._file is None or not trainer.is_main_process:
            return
        line: dict[str, Any] = {"step": step, "epoch": trainer.epoch}
        for name, value in metrics.items():
            line[name] = value if math.isfinite(value) else str(value)  # JSON knows no NaN
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        if self._file is None:
            return {}
        os.fsync(self._file.fileno())
        return {"length": self._file.tell()}

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def core_callbacks(config: TrainerConfig) -> list[Plugin]:
    """Returns the core's own callbacks: the writer of `metrics.jsonl`, where there is a place to
    write.
    """
    if config.output_dir is None:
        return []
    writer = MetricsFile(config.output_dir / "metrics.jsonl")
    return [Plugin(writer, "metrics_file", "trainer-core", find_version("trainer-core"))]
