"""The mean loss over a validation set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batches import batch_size_of, move_to_device
from .loaders import EpochLoader

__all__ = ["mean_loss"]


@torch.no_grad()
def mean_loss(
    loader: EpochLoader,
    loss_of: Callable[[Any], Tensor],
    device: torch.device,
    is_cut: Callable[[], bool],
) -> float | None:
    """Returns the mean of the batches' losses, each weighted by its number of items; one copy from
    the device in all.

    Args:
        loss_of: batch on `device` -> 0-dim loss.
        device: where the batches are moved.
        is_cut: asked before each batch; True ends the validation.

    Returns:
        None where it was cut short: a mean over a part would look like a result.

    Raises:
        EmptyLoaderError: there was no batch.
    """
    losses: list[Tensor] = []
    sizes: list[int] = []
    for batch, _ in loader.iterate(epoch=0):
        if is_cut():
            return None
        losses.append(loss_of(move_to_device(batch, device)).detach())
        sizes.append(batch_size_of(batch))
    values: list[float] = torch.stack(losses).tolist()
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
