"""Means that are exact over the items of a whole set, however its batches and shares are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.loaders import EmptyLoaderError
from .answers import Loss
from .losses import LossError, check_count

__all__ = ["Mean", "MeanLoss", "read_numbers"]


class Mean:
    """A sum and its number of items, in float64 on the device (float32 on mps, which has no other).

    Attributes:
        total, count: what was added so far, in this process.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts at nothing."""
        self._wide = torch.float32 if device.type == "mps" else torch.float64
        self.total: Tensor = torch.zeros((), dtype=self._wide, device=device)
        self.count: Any = 0

    def add(self, total: Tensor, count: float | Tensor) -> None:
        """Adds a 0-dim sum of so many items; no graph is kept. A number below 0 is NaN."""
        self.total += total.detach().to(self._wide)
        if isinstance(count, Tensor):
            count = count.to(self._wide).where(count >= 0, math.nan)
        self.count = self.count + count


def read_numbers(numbers: Sequence[float | Tensor]) -> list[float]:
    """Returns numbers as floats; 0-dim tensors of a device come in one copy, for which it waits."""
    first = next((each for each in numbers if isinstance(each, Tensor)), None)
    if first is None:
        return [float(each) for each in numbers]
    wide = torch.float32 if first.device.type == "mps" else torch.float64
    rows = [torch.as_tensor(each, dtype=wide).detach().to(first.device) for each in numbers]
    found: list[float] = torch.stack(rows).tolist()
    return found


class MeanLoss:
    """The mean of the batches' losses over all processes, each weighted by its number of items.

    Attributes:
        mean: that of this process.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts at nothing."""
        self.mean: Mean = Mean(device)
        self._batches = self._sums = 0

    @property
    def counts(self) -> list[float]:
        """Batches so far, and those that had a `Loss`."""
        return [self._batches, self._sums]

    def add(self, loss: Tensor | Loss, size: int | None) -> None:
        """Adds the loss of a batch of `size` items; a `Loss` has its own count."""
        self._batches += 1
        if isinstance(loss, Loss):
            check_count(loss.count)
            self._sums += 1
            self.mean.add(loss.total, loss.count)
        elif size:
            self.mean.add(loss.detach().to(self.mean.total.dtype) * size, size)

    @staticmethod
    def finish(total: float, items: float, batches: float, sums: float) -> float:
        """Returns the mean.

        Args:
            total, items: of the losses, over all processes.
            batches, sums: `counts`, over all processes.

        Raises:
            EmptyLoaderError: there was no batch, or no item.
            LossError: some losses are a `Loss`, and others a mean; a count was none.
        """
        if sums not in (0, batches):
            raise LossError(
                f"{sums:.0f} of {batches:.0f} batches of the validation have a Loss, and the "
                "others a mean. Answer trainer.Loss(total, count) for each, or for none."
            )
        check_count(items)  # NaN where one was below 0
        if items:
            return total / items
        if not batches:
            raise EmptyLoaderError("the validation loader gave no batch to any process.")
        raise EmptyLoaderError(
            f"the {batches:.0f} batches of the validation have no items. Pass their number as "
            "Trainer(..., batch_size=lambda batch: ...), or as the count of a Loss."
        )
