"""The loss of a batch, and losses added up without asking the device before somebody needs a
number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer_callback import RunError

from .ranks import ALONE, Ranks

__all__ = ["LossMeter", "NonFiniteError", "default_loss"]


class NonFiniteError(RunError):
    """The training loss or the gradient norm is NaN or infinite."""


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Returns the model's own output as the loss, or its `.loss`.

    Args:
        batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        TypeError: the model returned something else.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch)
    else:
        output = model(batch)
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise TypeError(
            f"the model returned a {type(output).__name__}{shape}, which is no loss. "
            "Return a 0-dim tensor or an object with .loss, or pass loss_fn=... to Trainer."
        )
    return loss


@dataclass
class _Sums:
    epoch_sum: float = 0.0
    epoch_count: int = 0
    interval_sum: float = 0.0
    interval_count: int = 0


class LossMeter:
    """Means of the training loss over the epoch and over the log interval, summed in float64, over
    all processes.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._sums = _Sums()
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Takes a 0-dim loss; nothing is copied from its device yet. Its graph is held until
        `fetch` only, and the backward pass before that has freed what took memory.
        """
        self._pending.append(loss)

    def fetch(self, norm: Tensor | None = None) -> bool:
        """Reads the losses added since the last call, in one copy. Returns whether all of them, and
        `norm`, are finite; if not, they are left out.
        """
        pending, self._pending = self._pending, []
        read = pending if norm is None else [*pending, norm]
        values = _read(read)
        total, count = sum(values[: len(pending)]), len(pending)
        finite = all(map(math.isfinite, values))
        if not self._ranks.is_alone:
            total, summed, bad = self._ranks.total(
                [total if finite else 0.0, count, not finite], "update"
            )
            count, finite = int(summed), not bad
        if not finite:
            return False
        sums = self._sums
        sums.epoch_sum += total
        sums.epoch_count += count
        sums.interval_sum += total
        sums.interval_count += count
        return True

    def take_interval(self) -> float | None:
        """Returns the mean since the last call, or None where nothing was added."""
        sums = self._sums
        mean = sums.interval_sum / sums.interval_count if sums.interval_count else None
        sums.interval_sum, sums.interval_count = 0.0, 0
        return mean

    def epoch_mean(self) -> float:
        """Returns the mean over the epoch so far; NaN where every update was skipped."""
        sums = self._sums
        return sums.epoch_sum / sums.epoch_count if sums.epoch_count else math.nan

    def start_epoch(self) -> None:
        """Forgets the epoch's losses; the log interval goes on."""
        self._sums.epoch_sum, self._sums.epoch_count = 0.0, 0

    def state(self) -> dict[str, float]:
        """Returns the sums as plain data."""
        return asdict(self._sums)

    def load_state(self, state: dict[str, float]) -> None:
        """Goes on from the sums of `state`."""
        self._sums = _Sums(**state)  # type: ignore[arg-type]


def _read(scalars: list[Tensor]) -> list[float]:
    if not scalars or scalars[0].is_cpu:
        return list(map(Tensor.item, scalars))
    double = any(scalar.dtype == torch.float64 for scalar in scalars)
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad():
        values: list[float] = torch.stack([scalar.to(dtype) for scalar in scalars]).tolist()
    return values
