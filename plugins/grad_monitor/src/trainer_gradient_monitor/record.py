"""The full record: one JSON object per measured update, in a file that a resumed run continues."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .arithmetic import EDGES
from .measurement import Reading
from .verdicts import Verdict

__all__ = ["Record", "describe_step", "make_entry", "make_scalars", "round_floats"]

_STEP: Final = re.compile(rb'\{"step": (\d+),')


class Record:
    """A file of JSON lines, each with its update as the first key, in rising order.

    Args:
        path: the file; its folder is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, step: int) -> int:
        """Removes every line after update `step`, and a line that was not finished.

        Returns:
            The last update that is in the record now; 0 where it is empty.
        """
        last = end = 0
        with self.path.open("a+b") as file:
            file.seek(0)
            for line in file:
                found = _STEP.match(line)
                if found is None or not line.endswith(b"\n") or int(found[1]) > step:
                    break
                last, end = int(found[1]), end + len(line)
            file.truncate(end)
        return last

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line; after it a killed process has lost nothing."""
        line = json.dumps(round_floats(entry, 7), allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())

    def sync(self) -> None:
        """Makes the record durable, so that it is never behind a snapshot that is taken next."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())


def make_entry(
    reading: Reading,
    verdicts: Mapping[str, Verdict],
    *,
    step: int,
    epoch: int,
    step_values: Mapping[str, object],
) -> dict[str, object]:
    """Returns the line of one measured update; NaN and infinities are null once it is written.

    Args:
        step_values: those of the whole step.
    """
    layers: dict[str, object] = {"name": list(reading.rows)}
    for column, values in reading.columns.items():
        layers[column if column == "update_ratio" else f"{column}_pre_clip"] = values
    layers["verdict"] = [verdicts[row] for row in reading.rows]
    entry: dict[str, object] = {
        "step": step,
        "epoch": epoch,
        **step_values,
        "disconnected": list(reading.disconnected),
        "nonfinite_parameters_pre_clip": reading.nonfinite,
        "layers": layers,
    }
    if reading.histogram is not None:
        entry["histogram_pre_clip"] = {"log2_edges": EDGES, "shares": reading.histogram}
    return entry


def describe_step(reading: Reading, clip_limit: float | None) -> dict[str, float | None]:
    """Returns what the whole step shows, beside its counts; None where it has no value.

    `clip_factor` is what clipping multiplies the gradients by. `flow_ratio_pre_clip` is the rms of
    the first layer by that of the last: far below 1, the gradient dies on its way down.
    """
    norm, rms = reading.total_norm, reading.columns["rms"]
    factor = None
    if clip_limit is not None and math.isfinite(norm):
        factor = min(1.0, clip_limit / (norm + 1e-6))
    return {
        "total_norm_pre_clip": norm,
        "clip_limit": clip_limit,
        "clip_factor": factor,
        "loss_scale": reading.loss_scale,
        "flow_ratio_pre_clip": rms[0] / rms[-1] if len(rms) > 1 and rms[-1] else None,
    }


def make_scalars(step_values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of a step as metrics for loggers: those that are finite numbers."""
    found = {
        "grad_norm_pre_clip": step_values["total_norm_pre_clip"],
        "grad_flow_ratio_pre_clip": step_values["flow_ratio_pre_clip"],
        "grad_skipped_updates": step_values["skipped_updates"],
        "grad_loss_scale": step_values["loss_scale"],
    }
    if step_values["clip_limit"] is not None:
        found["grad_clip_factor"] = step_values["clip_factor"]
        found["grad_clip_rate"] = step_values["clipped_updates"] / step_values["updates"]
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def round_floats(value: Any, digits: int) -> Any:
    """Returns `value` with so many digits a float (a float32 has 7), and None for one that is not
    finite.
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: round_floats(item, digits) for key, item in value.items()}
    is_list = isinstance(value, (list, tuple))
    return [round_floats(item, digits) for item in value] if is_list else value
