"""The curve of losses over rates: what it suggests, and its picture. Knows no trainer."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Curve"]

_FEWEST: Final = 5
"""Losses that have to fall one below the other, or nothing is suggested."""


@dataclass
class Curve:
    """What a range test has found.

    Attributes:
        rates: that were tried, of the first parameter group, rising.
        losses: with each.
        smoothed: their running mean, without the pull of its start (as Adam's are corrected).
    """

    smoothing: float
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    _mean: float = 0.0

    def add(self, rate: float, loss: float) -> None:
        """Takes a finite loss."""
        self.rates.append(rate)
        self.losses.append(loss)
        self._mean = self.smoothing * self._mean + (1 - self.smoothing) * loss
        self.smoothed.append(self._mean / (1 - self.smoothing ** len(self.losses)))

    def suggest(self) -> dict[str, float]:
        """Returns `steepest`, the rate at which the loss falls fastest over the logarithm of the
        rate, and `valley`, that in the middle of the longest way down, which jumps over what rises
        in between, without the first and the last tenth of its fall. Empty where the loss hardly
        falls.
        """
        way = _longest_descent(self.smoothed)
        if len(way) < _FEWEST:
            return {}
        places = range(1, way[-1])
        slopes = {
            place: (self.smoothed[place + 1] - self.smoothed[place - 1])
            / math.log(self.rates[place + 1] / self.rates[place - 1])
            for place in places
        }
        steepest = min(slopes, key=lambda place: slopes[place])
        top, low = self.smoothed[way[0]], self.smoothed[way[-1]]
        tenth = 0.1 * (top - low)
        inner = [each for each in way if low + tenth <= self.smoothed[each] <= top - tenth] or way
        return {
            "valley": self.rates[(inner[0] + inner[-1]) // 2],
            "steepest": self.rates[steepest],
        }

    def draw(self, path: Path, suggested: dict[str, float], chosen: str) -> None:
        """Writes a picture of it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.plot(self.rates, self.losses, color="#B8B8B8", linewidth=0.8, label="loss")
        axes.plot(self.rates, self.smoothed, color="#0072B2", linewidth=1.8, label="smoothed")
        for name, rate in suggested.items():
            color = "#D55E00" if name == chosen else "#7A7A7A"
            height = self.smoothed[self.rates.index(rate)]
            axes.plot([rate], [height], "o", color=color, label=f"{name} {rate:.3g}")
        low, high = min(self.losses), max(self.smoothed[: max(1, len(self.smoothed) // 2)])
        room = 0.15 * (high - low) or 1.0
        axes.set_ylim(low - room, high + 3 * room)
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.legend(frameon=False)
        figure.savefig(path)
        gc.collect()  # matplotlib leaves exceptions in circles, whose frames lead to the run's


def _longest_descent(values: Sequence[float]) -> list[int]:
    """Returns the places of the longest falling subsequence; of several the one that ends first."""
    lengths, before = [1] * len(values), [-1] * len(values)
    for place, value in enumerate(values):
        for earlier in range(place):
            if values[earlier] > value and lengths[earlier] >= lengths[place]:
                lengths[place], before[place] = lengths[earlier] + 1, earlier
    place, way = lengths.index(max(lengths)) if lengths else -1, []
    while place >= 0:
        way.append(place)
        place = before[place]
    return way[::-1]
