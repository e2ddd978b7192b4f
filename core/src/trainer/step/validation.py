"""A validation: the mean loss over a set, or what a user's function finds; it leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..data.batch_size import BatchSizes
from ..data.batches import move_to_device
from ..data.loaders import EmptyLoaderError, EpochLoader
from ..processes.ranks import Ranks
from ..processes.rng import read_rng, restore_rng
from ..writers.metrics_file import to_floats
from .answers import read_answer
from .means import MeanLoss
from .modes import Modes

__all__ = [
    "CutError",
    "LossValidation",
    "ValidationBatches",
    "agree_on_metrics",
    "without_trace",
]


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


class CutError(BaseException):
    """A signal cuts a validation short; `except Exception` lets it pass."""


class LossValidation:
    """The validation of a `Trainer`: the mean of the batches' losses over all processes, each
    weighted by its number of items; one copy from the device in all.
    """

    def __init__(
        self,
        loader: EpochLoader,
        loss_of: Callable[[Any], Any],
        *,
        device: torch.device,
        sizes: BatchSizes,
        is_cut: Callable[[], bool],
        are_sums: Callable[[], bool | None],
    ) -> None:
        """Keeps references.

        Args:
            loader: of the batches, of which each process has a share.
            loss_of: batch on `device` -> what a loss function answers.
            device: where the batches are moved.
            sizes: counts the items of a batch.
            is_cut: asked before each batch, by all processes; True ends the validation.
            are_sums: whether the losses of the training are sums, which need no sizes.
        """
        self._loader, self._loss_of, self._sizes = loader, loss_of, sizes
        self._device, self._ranks, self._is_cut = device, loader.ranks, is_cut
        self._are_sums = are_sums

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss`.

        Raises:
            CutError: it was cut short: a mean over a part would look like a result.
            EmptyLoaderError: there was no batch, or not one for each process of a sharded model.
            LossError: what should be the loss of a batch is none.
        """
        loader, device, ranks = self._loader, self._device, self._ranks
        mean, seen = MeanLoss(device), 0
        moves = device.type != "cpu" or ranks.is_sharded  # else as in training: the batch itself
        batches = loader.iterate(epoch=0)
        item = next(batches, None)
        if ranks.is_sharded and ranks.highest(item is None, "validation"):
            raise EmptyLoaderError(
                f"the validation loader has no batch for one of {ranks.world_size} processes, and "
                "the model is sharded over all of them. Make its batches smaller."
            )
        batch: Any = None  # on the host: a loss function may take things out of what it is given
        while ranks.highest(item is not None, "validation batch"):  # shares may differ by a batch
            if self._is_cut():
                raise CutError
            if item is not None:
                batch = item[0]
            if item is not None or ranks.is_sharded:  # whose forward pass takes all: for 0 then
                size = None
                if item is not None and not self._are_sums():
                    size = self._sizes.count(batch, loader.promised_size(seen))
                loss, _ = read_answer(
                    self._loss_of(move_to_device(batch, device) if moves else batch)
                )
                if item is not None:  # else of another process's turn
                    mean.add(loss, size)
                del loss  # which holds the memory of its forward pass
                seen += item is not None
                item = next(batches, None)
        return {"val_loss": mean.finish(ranks)}


class ValidationBatches:
    """The batches of a validation that a user's function goes through: of several processes each
    has its share, and they go in step, so that a signal cuts all of them at the same place.
    """

    def __init__(
        self,
        loader: EpochLoader,
        *,
        device: torch.device,
        is_cut: Callable[[], bool],
    ) -> None:
        """Starts at the first batch."""
        self._batches = loader.iterate(epoch=0)
        self._device, self._ranks, self._is_cut = device, loader.ranks, is_cut

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._batches, None)
        while self._ranks.highest(item is not None, "validation batch"):
            if self._is_cut():
                raise CutError
            if item is not None:
                return move_to_device(item[0], self._device)
            if self._ranks.is_sharded:
                raise EmptyLoaderError(
                    "the validation loader has fewer batches for this process than for another, "
                    "and a forward pass of a sharded model takes all of them. Give it as many."
                )
        raise StopIteration


def agree_on_metrics(metrics: object, ranks: Ranks) -> dict[str, float]:
    """Returns the metrics of a user's validation, averaged over all processes.

    Raises:
        TypeError: they are no mapping of names to numbers.
        ValueError: the processes have other names.
    """
    own = {} if metrics is None else to_floats(metrics, "validate")  # type: ignore[arg-type]
    everywhere = ranks.gather(own, "metrics of a validation")
    if all(repr(each) == repr(own) for each in everywhere):
        return own
    if any(each.keys() != own.keys() for each in everywhere):
        names = " and ".join(", ".join(each) or "none" for each in everywhere)
        raise ValueError(
            f"the processes have other metrics of a validation: {names}. Return the same names in "
            "all of them."
        )
    return {name: sum(each[name] for each in everywhere) / len(everywhere) for name in own}
