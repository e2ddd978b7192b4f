"""The mean loss over a validation set, and what keeps a validation from leaving a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .batch_size import BatchSizes
from .batches import move_to_device
from .loaders import EmptyLoaderError, EpochLoader
from .losses import check_form
from .modes import Modes
from .ranks import Ranks
from .rng import read_rng, restore_rng

__all__ = ["mean_loss", "without_trace"]


@contextlib.contextmanager
def without_trace(modes: Modes, device: torch.device) -> Iterator[None]:
    """Puts every mode and every generator of random numbers back as it was before; inside, the
    model is in evaluation mode.
    """
    rng = read_rng(device)
    try:
        with modes.evaluation():
            yield
    finally:
        restore_rng(rng, device)


@torch.no_grad()
def mean_loss(
    loader: EpochLoader,
    loss_of: Callable[[Any], Tensor],
    device: torch.device,
    ranks: Ranks,
    *,
    sizes: BatchSizes,
    is_cut: Callable[[], bool],
) -> float | None:
    """Returns the mean of the batches' losses over all processes, each weighted by its number of
    items; one copy from the device in all.

    Args:
        loss_of: batch on `device` -> 0-dim loss.
        device: where the batches are moved.
        ranks: the processes, each of which has a share of the batches.
        sizes: counts the items of a batch.
        is_cut: asked before each batch, by all processes; True ends the validation.

    Returns:
        None where it was cut short: a mean over a part would look like a result.

    Raises:
        EmptyLoaderError: there was no batch, or not one for each process of a sharded model.
        LossError: what should be the loss of a batch is none.
    """
    wide = torch.float32 if device.type == "mps" else torch.float64  # which mps has not
    weighted, count, seen = torch.zeros((), dtype=wide, device=device), 0, 0
    moves = device.type != "cpu" or ranks.is_sharded  # else as in training: the batch itself
    batches = loader.iterate(epoch=0)
    item = next(batches, None)
    if ranks.is_sharded and ranks.highest(item is None, "validation"):
        raise EmptyLoaderError(
            f"the validation loader has no batch for one of {ranks.world_size} processes, and the "
            "model is sharded over all of them. Make its batches smaller."
        )
    batch: Any = None  # on the host: a loss function may take things out of what it is given
    while ranks.highest(item is not None, "validation batch"):  # shares may differ by a batch
        if is_cut():
            return None
        if item is not None:
            batch = item[0]
        if item is not None or ranks.is_sharded:  # whose forward pass takes all: once more, for 0
            size = 0 if item is None else sizes.count(batch, loader.promised_size(seen))
            loss = loss_of(move_to_device(batch, device) if moves else batch)
            loss = check_form(loss).detach()
            if size:  # a loss that is kept, though 0-dim, pins the memory of its whole forward pass
                weighted += loss.to(wide) * size
                count += size
            seen += item is not None
            item = next(batches, None)
    sums = [float(weighted), count, seen]
    total, items, given = ranks.total(sums, "end of a validation")
    if not items:
        raise EmptyLoaderError(
            f"the {given:.0f} batches of the validation have no items. Pass their number as "
            "Trainer(..., batch_size=lambda batch: ...)."
            if given
            else "the validation loader gave no batch to any process."
        )
    return total / items
