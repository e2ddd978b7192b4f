"""One measured update, from the gradients on their device to numbers on the host in one copy.

Letters: R rows, C columns, H histogram bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .arithmetic import BINS, copy_weights, count_magnitudes, update_ratios
from .groups import Groups

if TYPE_CHECKING:
    import torch

    from trainer_callback import GradientStats, TrainerProtocol

__all__ = ["COLUMNS", "Probe", "Reading"]

COLUMNS: Final = (
    "norm",
    "rms",
    "max_abs",
    "mean",
    "std",
    "zero_fraction",
    "nonfinite",
    "update_ratio",
)
"""What is known of a row; all but the last are of the gradient before clipping."""

_OWN = "parameter "
"""Put before a parameter's name, it names a group of that parameter alone."""


@dataclass(frozen=True)
class Reading:
    """What was measured at one update, as plain numbers.

    Attributes:
        rows: those of the R rows that had a gradient, in the model's order.
        columns: for each of `COLUMNS` one number per row; NaN where there is none.
        total_norm: 2-norm over all gradients of the model.
        clipped: how many updates were clipped since the last reading.
        nonfinite: parameter -> how many of its entries are NaN or infinite, where there are any.
        disconnected: parameters that require a gradient and got none.
        histogram: for each row the share of its entries in each of the H bins, or None.
        loss_scale: what the loss was multiplied by; None where it was not scaled.
    """

    rows: tuple[str, ...]
    columns: dict[str, list[float]]
    total_norm: float
    clipped: int
    nonfinite: dict[str, int]
    disconnected: tuple[str, ...]
    histogram: list[list[float]] | None
    loss_scale: float | None = None


class Probe:
    """Holds on to what has to be known before the step, until the step is done.

    Made in `on_backward_end`: the gradients are complete, unscaled and not yet clipped. It changes
    none of them.
    """

    def __init__(
        self,
        trainer: TrainerProtocol,
        groups: Groups,
        *,
        norm_type: float,
        update_ratio: bool,
        histogram: bool,
    ) -> None:
        """Computes the statistics of the gradients, on their device.

        Args:
            groups: row -> its parameters.
            norm_type: order of the norm in column `norm`.
            update_ratio: keep a copy of the weights until `read`.
            histogram: count the magnitudes.
        """
        self._loss_scale = trainer.loss_scale
        parameters = dict(trainer.model.named_parameters())
        own = {_OWN + name: (name,) for names in groups.values() for name in names}
        self._stats = trainer.gradient_stats({**groups, **own}, norm_type=norm_type)
        self._rows = tuple(row for row in self._stats.rows if row in groups)
        self._trained = {
            row: [parameters[name] for name in groups[row] if parameters[name].grad is not None]
            for row in self._rows
        }
        self._disconnected = tuple(name for name in self._stats.disconnected if _OWN + name in own)
        self._before = copy_weights(self._trained) if update_ratio else None
        self._histogram = count_magnitudes(self._trained) if histogram and self._rows else None

    def read(self, clipped: torch.Tensor | None, *, skipped: bool) -> Reading:
        """Returns the numbers; the one copy from the device to the host.

        Args:
            clipped: 0-dim, how many updates were clipped since the last reading; None where
                clipping is off.
            skipped: there was no step, and so there is no update ratio. No process waits here for
                another then, which may not know of what has ended the run.
        """
        import torch

        stats = self._stats
        ratio = stats.values.new_full((len(self._rows),), math.nan)
        if self._before is not None and not skipped:
            ratio = update_ratios(self._before, self._trained, stats.values.device)
        parts = [stats.total_norm.reshape(1), stats.values.flatten(), ratio]
        parts.append(stats.values.new_zeros(1) if clipped is None else clipped.reshape(1))
        if self._histogram is not None:
            parts.append(self._histogram.flatten())
        numbers = torch.cat([part.to(stats.values) for part in parts]).tolist()
        return self._arrange(numbers)

    def _arrange(self, numbers: Sequence[float]) -> Reading:
        stats, rows = self._stats, self._rows
        width = len(stats.columns)
        end = 1 + len(stats.rows) * width
        table = {
            row: numbers[1 + i * width : 1 + (i + 1) * width] for i, row in enumerate(stats.rows)
        }
        columns = {
            name: [table[row][stats.columns.index(name)] for row in rows] for name in COLUMNS[:-1]
        }
        columns["update_ratio"] = list(numbers[end : end + len(rows)])
        bins = numbers[end + len(rows) + 1 :]
        return Reading(
            rows=rows,
            columns=columns,
            total_norm=numbers[0],
            clipped=int(numbers[end + len(rows)]),
            nonfinite=_nonfinite(table, stats),
            disconnected=self._disconnected,
            histogram=[list(bins[i : i + BINS]) for i in range(0, len(bins), BINS)] or None,
            loss_scale=self._loss_scale,
        )


def _nonfinite(table: Mapping[str, Sequence[float]], stats: GradientStats) -> dict[str, int]:
    place = stats.columns.index("nonfinite")
    return {
        row.removeprefix(_OWN): int(values[place])
        for row, values in table.items()
        if row.startswith(_OWN) and values[place]
    }
