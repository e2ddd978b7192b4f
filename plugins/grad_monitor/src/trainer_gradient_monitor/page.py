"""The run as one self-contained page: a static template with the numbers put in as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from functools import cache
from typing import Any, Final

from .arithmetic import EDGES
from .history import Sample, thin
from .layers import Layer, read_layers
from .measurement import Reading
from .names import readable
from .record import round_floats
from .state import MonitorState

__all__ = ["render_page"]

_PLACE: Final = '"DATA"'
_MOST_COLUMNS: Final = 240
"""Of the heatmap: more than fit a screen only make the file larger."""

_LEAST_COLUMNS: Final = 20
_MOST_NUMBERS: Final = 1 << 20
"""Of all heatmaps, some 8 MB: the more layers, the fewer columns."""

_SHOWN: Final = ("rms", "norm", "max_abs", "update_ratio", "zero_fraction")


def render_page(
    state: MonitorState, last: Reading | None, vanish_threshold: float, clip_limit: float | None
) -> str:
    """Returns the page: one file, no network, light or dark as its reader has it.

    Args:
        last: what was measured last; its histogram is shown where it has one.
    """
    layers = read_layers(state)
    most = max(_LEAST_COLUMNS, _MOST_NUMBERS // max(1, len(layers) * len(_SHOWN)))
    samples = thin(state.history.samples, min(_MOST_COLUMNS, most))
    rows = [state.history.rows.index(layer.name) for layer in layers]
    data = {
        "measured": state.measured,
        "updates": state.updates,
        "clipped": state.clipped,
        "counted": state.updates - state.updates_since,
        "skipped": state.skipped,
        "loss_scale": None if state.loss_scale is None else f"{state.loss_scale:g}",
        "clip_limit": clip_limit,
        "vanish_threshold": vanish_threshold,
        "steps": [sample.step for sample in samples],
        "total_norm": [sample.total_norm for sample in samples],
        "step_skipped": [sample.skipped for sample in samples],
        "layers": [_describe(layer) for layer in layers],
        "columns": {name: _heat(samples, rows, name) for name in _SHOWN},
        "histogram": _describe_histogram(last),
    }
    text = json.dumps(round_floats(data, 4), allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return _template().replace(_PLACE, text)


@cache
def _template() -> str:
    from importlib.resources import files  # a command line that shows options has no time for it

    return (files(__package__) / "gradient_flow.html").read_text(encoding="utf-8")


def _describe(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.label,
        "verdict": layer.verdict,
        "rms": astuple(layer.rms),
        "update_ratio": astuple(layer.update_ratio),
        "latest": layer.latest,
    }


def _heat(samples: list[Sample], rows: list[int], column: str) -> list[list[float | None]]:
    """Returns a number per layer and sample: None for no gradient, -1 for one not finite."""
    values = [sample.column(column) for sample in samples]
    nonfinite = [sample.column("nonfinite") for sample in samples]
    return [[_cell(values[i][row], nonfinite[i][row]) for i in range(len(samples))] for row in rows]


def _cell(value: float, nonfinite: float) -> float | None:
    if nonfinite > 0:
        return -1.0
    return value if math.isfinite(value) else None


def _describe_histogram(last: Reading | None) -> dict[str, Any] | None:
    if last is None or last.histogram is None:
        return None
    return {"rows": [*map(readable, last.rows)], "log2_edges": EDGES, "shares": last.histogram}
