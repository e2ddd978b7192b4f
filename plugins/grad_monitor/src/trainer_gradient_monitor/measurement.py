"""One measured update, from the gradients on their device to numbers on the host in one copy.

The only room here that computes with tensors. Letters: R rows, C columns, P parameters, H histogram
bins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .groups import Groups

if TYPE_CHECKING:
    import torch

    from trainer_callback import GradientStats, TrainerProtocol

__all__ = ["BINS", "COLUMNS", "LOWEST_BIN", "Probe", "Reading"]

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

LOWEST_BIN: Final = -24
BINS: Final = 34
"""Of log2 of the magnitude: below -24, one each from -24 to 7, 8 and above.

fp16 has nothing below 2**-24.
"""

_PIECE: Final = 1 << 20
"""Elements: a float32 norm of so many is right to 1e-5; of 38 million it is 0.3 % too low."""

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
        self._before = _copy(self._trained) if update_ratio else None
        self._histogram = _histogram(self._trained) if histogram and self._rows else None

    def read(self, clipped: torch.Tensor | None) -> Reading:
        """Returns the numbers; the one copy from the device to the host.

        Args:
            clipped: 0-dim, how many updates were clipped since the last reading; None where
                clipping is off.
        """
        import torch

        stats = self._stats
        ratio = stats.values.new_full((len(self._rows),), math.nan)
        if self._before is not None:
            ratio = _update_ratio(self._before, self._trained, stats.values.device)
        parts = [stats.total_norm.reshape(1), stats.values.flatten(), ratio]
        parts.append(stats.values.new_zeros(1) if clipped is None else clipped.reshape(1))
        if self._histogram is not None:
            parts.append(self._histogram.flatten())
        home = stats.values.device
        numbers = torch.cat([part.to(home, torch.float32) for part in parts]).tolist()
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


def _copy(trained: Mapping[str, Sequence[torch.nn.Parameter]]) -> dict[str, list[torch.Tensor]]:
    """Returns the weights, at least in float32, so that a difference of halves is exact."""
    import torch

    return {
        row: [
            p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for p in parameters
        ]
        for row, parameters in trained.items()
    }


def _update_ratio(
    before: Mapping[str, Sequence[torch.Tensor]],
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
    home: torch.device,
) -> torch.Tensor:
    """Returns norm(new - old) / norm(old) of each row (R,); what is in `before` is used up."""
    old_norms = _norms(before.values(), home)
    for row, parameters in trained.items():
        for old, parameter in zip(before[row], parameters, strict=True):
            old.sub_(parameter.detach())
    return _norms(before.values(), home) / old_norms


def _norms(rows: Collection[Sequence[torch.Tensor]], home: torch.device) -> torch.Tensor:
    """Returns the 2-norm of each row of tensors (R,)."""
    import torch

    pieces = [(row, x) for row, tensors in enumerate(rows) for t in tensors for x in _cut(t)]
    squares = torch.zeros(len(rows), device=home)
    if pieces:
        norms = torch._foreach_norm([piece for _, piece in pieces], 2)
        place = torch.tensor([row for row, _ in pieces], device=home)
        squares.index_add_(0, place, torch.stack([norm.to(squares) for norm in norms]).square())
    return squares.sqrt()


def _cut(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.numel() <= _PIECE:
        yield tensor
        return
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        yield flat[start : start + _PIECE]


def _histogram(trained: Mapping[str, Sequence[torch.nn.Parameter]]) -> torch.Tensor:
    """Returns the share of each row's entries in each bin (R, H).

    Zeros and non-finite entries are in none.
    """
    import torch

    shares = []
    for parameters in trained.values():
        counts = torch.zeros(BINS, dtype=torch.int64, device=parameters[0].device)
        total = 0
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            total += values.numel()
            for piece in _cut(values.detach().reshape(-1)):
                magnitude = piece.float().abs()
                floor = torch.frexp(magnitude).exponent.long() - 1
                place = (floor - LOWEST_BIN + 1).clamp(0, BINS - 1)
                counts.scatter_add_(0, place, ((magnitude > 0) & magnitude.isfinite()).long())
        shares.append((counts / max(total, 1)).float())
    return torch.stack([share.to(shares[0].device) for share in shares])
