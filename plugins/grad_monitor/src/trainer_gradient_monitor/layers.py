"""One layer over the whole run: what summary, picture and page show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .measurement import COLUMNS
from .names import readable
from .state import MonitorState
from .verdicts import SEVERITY, Verdict

__all__ = ["Layer", "Spread", "read_layers", "sort_worst"]


@dataclass(frozen=True)
class Spread:
    """Median and range of what was finite; None where nothing was."""

    least: float | None
    median: float | None
    most: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        finite = sorted(value for value in values if math.isfinite(value))
        if not finite:
            return cls(None, None, None)
        return cls(finite[0], statistics.median(finite), finite[-1])


@dataclass(frozen=True)
class Layer:
    """One row of the history.

    Attributes:
        name, verdict: at the last update that was measured and taken.
        rms, update_ratio: over the samples.
        latest: `COLUMNS` at the last sample in which it had a gradient; empty if it never had one.
    """

    name: str
    verdict: Verdict
    rms: Spread
    update_ratio: Spread
    latest: dict[str, float]

    @property
    def label(self) -> str:
        """The name as people read it."""
        return readable(self.name)


def read_layers(state: MonitorState) -> list[Layer]:
    """Returns the layers that had a gradient, or should have had one, in the model's order."""
    width = len(COLUMNS)
    layers = []
    for index, name in enumerate(state.history.rows):
        samples = [
            dict(zip(COLUMNS, sample.values[index * width : (index + 1) * width], strict=True))
            for sample in state.history.samples
        ]
        present = [sample for sample in samples if not math.isnan(sample["nonfinite"])]
        if present or name in state.verdicts:
            layers.append(
                Layer(
                    name=name,
                    verdict=state.verdicts.get(name, "healthy"),
                    rms=Spread.of(sample["rms"] for sample in present),
                    update_ratio=Spread.of(sample["update_ratio"] for sample in present),
                    latest=present[-1] if present else {},
                )
            )
    return layers


def sort_worst(layers: Iterable[Layer]) -> list[Layer]:
    """Returns the layers, worst first: exploding ones by falling, all others by rising rms."""

    def key(layer: Layer) -> tuple[int, float]:
        rms = layer.latest.get("rms", 0.0)
        return -SEVERITY[layer.verdict], -rms if layer.verdict == "exploding" else rms

    return sorted(layers, key=key)
