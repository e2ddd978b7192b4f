"""What a run's gradients did, in a few lines for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from .layers import Layer, read_layers, sort_worst
from .state import MonitorState

__all__ = ["summarize"]

_WORST: Final = 5
_HEADER: Final = ("layer", "verdict", "rms", "median", "lowest", "highest", "update ratio")


def summarize(state: MonitorState, page: Path | None) -> str:
    """Returns the five worst layers, what was clipped and skipped, and where the page is."""
    layers = read_layers(state)
    rows = [_HEADER, *map(_cells, sort_worst(layers)[:_WORST])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [f"gradients of {len(layers)} layers at {state.measured} of {state.updates} updates:"]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  " + "  ".join([*texts, *numbers]))
    share = state.clipped / max(1, state.updates - state.updates_since)
    scale = "" if state.loss_scale is None else f"; the loss scale is {state.loss_scale:g}"
    lines.append(f"  clipped {share:.1%} of the updates, skipped {state.skipped}{scale}.")
    if page is not None:
        lines.append(f"  page: {page}")
    return "\n".join(lines)


def _cells(layer: Layer) -> tuple[str, ...]:
    numbers = (
        layer.latest.get("rms"),
        layer.rms.median,
        layer.rms.least,
        layer.rms.most,
        layer.latest.get("update_ratio"),
    )
    return (layer.label, layer.verdict, *(_show(number) for number in numbers))


def _show(number: float | None) -> str:
    return "-" if number is None or not math.isfinite(number) else f"{number:.2g}"
