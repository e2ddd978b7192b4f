"""The mean loss over a validation set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batches import batch_size_of, move_to_device
from .loaders import EmptyLoaderError, EpochLoader
from .ranks import Ranks

__all__ = ["mean_loss"]


@torch.no_grad()
def mean_loss(
    loader: EpochLoader,
    loss_of: Callable[[Any], Tensor],
    device: torch.device,
    ranks: Ranks,
    is_cut: Callable[[], bool],
) -> float | None:
    """Returns the mean of the batches' losses over all processes, each weighted by its number of
    items; one copy from the device in all.

    Args:
        loss_of: batch on `device` -> 0-dim loss.
        device: where the batches are moved.
        ranks: the processes, each of which has a share of the batches.
        is_cut: asked before each batch, by all processes; True ends the validation.

    Returns:
        None where it was cut short: a mean over a part would look like a result.

    Raises:
        EmptyLoaderError: there was no batch.
    """
    losses: list[Tensor] = []
    sizes: list[int] = []
    batches = loader.iterate(epoch=0)
    item = next(batches, None)
    while ranks.highest(item is not None):  # shares may differ by a batch
        if is_cut():
            return None
        if item is not None:
            losses.append(loss_of(move_to_device(item[0], device)).detach())
            sizes.append(batch_size_of(item[0]))
            item = next(batches, None)
    values: list[float] = torch.stack(losses).tolist() if losses else []
    weighted = sum(value * size for value, size in zip(values, sizes, strict=True))
    total, count = ranks.total([weighted, sum(sizes)])
    if not count:
        raise EmptyLoaderError("the validation loader gave no batch to any process.")
    return total / count
