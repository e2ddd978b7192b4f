"""The measured updates of a run, in memory that does not grow; and as plain data for snapshots."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

from .measurement import COLUMNS, Reading
from .verdicts import SEVERITY, Verdict

__all__ = ["History", "Sample", "thin"]

_MOST: Final = 3.4e38
"""Nearly the largest float32. What is more, in gradients of float64, is drawn as so much."""

_LISTS: Final[Mapping[str, str]] = {
    "steps": "step",
    "epochs": "epoch",
    "total_norms": "total_norm",
    "skipped": "skipped",
    "severities": "severity",
}
"""Key in a snapshot -> attribute of each sample, in the order of `Sample`."""


@dataclass(frozen=True)
class Sample:
    """One measured update.

    Attributes:
        step: the update, from 1.
        epoch: 0-based.
        total_norm: over the whole model before clipping; None where it is not finite.
        skipped: the update was not taken.
        severity: of the worst layer's verdict.
        values: float32, R rows of `COLUMNS`, one after the other; NaN where a row had no gradient.
    """

    step: int
    epoch: int
    total_norm: float | None
    skipped: bool
    severity: int
    values: array[float]

    def column(self, name: str) -> list[float]:
        """Returns one number per row of the history (R,)."""
        return list(self.values[COLUMNS.index(name) :: len(COLUMNS)])


class History:
    """The whole run in at most `capacity` samples.

    While there is room every sample is kept. When it is full, neighbours are joined two and two,
    and from then on as many measured updates as were joined share one place. Of those that share a
    place one stays: the one with the worst verdict, and the latest of these. The full record is on
    disk.

    Args:
        rows: names of the R rows, in the model's order.
        capacity: most samples; at least 2, an odd number counts as the even one below.
    """

    def __init__(self, rows: Sequence[str], capacity: int) -> None:
        self.rows: tuple[str, ...] = tuple(rows)
        self.samples: list[Sample] = []
        self._capacity = capacity - capacity % 2
        self._share = 1
        self._in_last = 0

    def add(
        self,
        reading: Reading,
        verdicts: Mapping[str, Verdict],
        *,
        step: int,
        epoch: int,
        skipped: bool,
    ) -> None:
        """Takes what was measured at an update."""
        values = array("f", [math.nan]) * (len(self.rows) * len(COLUMNS))
        place = {row: index for index, row in enumerate(self.rows)}
        for index, row in enumerate(reading.rows):
            start = place[row] * len(COLUMNS)
            for offset, name in enumerate(COLUMNS):
                value = reading.columns[name][index]
                values[start + offset] = _MOST if _MOST < value < math.inf else value
        norm = reading.total_norm if math.isfinite(reading.total_norm) else None
        severity = max((SEVERITY[verdict] for verdict in verdicts.values()), default=0)
        self._append(Sample(step, epoch, norm, skipped, severity, values))

    def _append(self, sample: Sample) -> None:
        if self.samples and self._in_last < self._share:
            self.samples[-1] = _worse(self.samples[-1], sample)
            self._in_last += 1
            return
        if len(self.samples) >= self._capacity:
            self._halve()
        self.samples.append(sample)
        self._in_last = 1

    def _halve(self) -> None:
        if len(self.samples) % 2 == 0:
            self._in_last += self._share
        self.samples = thin(self.samples, (len(self.samples) + 1) // 2)
        self._share *= 2

    def to_plain(self) -> dict[str, Any]:
        """Returns the history as plain data, a few bytes per number."""
        return {
            "share": self._share,
            "in_last": self._in_last,
            **{
                key: [getattr(sample, name) for sample in self.samples]
                for key, name in _LISTS.items()
            },
            # torch.load cannot read an empty bytes object
            "float32_values": b"".join(sample.values.tobytes() for sample in self.samples) or None,
        }

    def load_plain(self, plain: Mapping[str, Any]) -> None:
        """Takes over what `to_plain` returned for the same rows, thinned if need be."""
        values = array("f")
        values.frombytes(plain["float32_values"] or b"")
        width = len(self.rows) * len(COLUMNS)
        count = len(plain["steps"])
        parts = [values[i * width : (i + 1) * width] for i in range(count)]
        lists = [plain[key] for key in _LISTS]
        self.samples = [Sample(*each) for each in zip(*lists, parts, strict=True)]
        self._share, self._in_last = plain["share"], plain["in_last"]
        while len(self.samples) > self._capacity:
            self._halve()


def thin(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Returns at most `most` samples that cover the same updates: of neighbours the worst."""
    together = -(-len(samples) // most) if samples else 1
    return [
        reduce(_worse, samples[start : start + together])
        for start in range(0, len(samples), together)
    ]


def _worse(earlier: Sample, later: Sample) -> Sample:
    return earlier if earlier.severity > later.severity else later
