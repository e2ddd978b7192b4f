"""A validation: its batches, what a user's function finds in them, and no trace of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..data.batches import move_to_device
from ..data.loaders import EmptyLoaderError, EpochLoader
from ..processes.ranks import Ranks
from ..processes.rng import read_rng, restore_rng
from ..writers.metrics_file import to_floats
from .modes import Modes

__all__ = [
    "CutError",
    "ValidationBatches",
    "agree_on_metrics",
    "go_together",
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


def go_together(
    loader: EpochLoader,
    name: str,
    *,
    is_cut: Callable[[], bool],
    keep_up: Callable[[Any], object],
) -> Iterator[tuple[Any, bool] | None]:
    """Yields `(batch, is_last)` of this process's share, on the host, and None where others have
    one more: all processes go through as many rounds, in the order of the data.

    Args:
        name: how messages call the loader.
        is_cut: whether to break off here; asked in each round.
        keep_up: called with the last batch where others have one more, if a forward pass takes all
            processes.

    Raises:
        CutError: `is_cut` said so.
        EmptyLoaderError: a process has no batch, and a forward pass takes all of them.
    """
    ranks, batches = loader.ranks, loader.iterate(epoch=0)
    item = next(batches, None)
    if ranks.is_sharded and ranks.highest(item is None, name):
        raise EmptyLoaderError(
            f"the {name} loader has no batch for one of {ranks.world_size} processes, and the "
            "model is sharded over all of them. Make its batches smaller."
        )
    batch: Any = None
    while ranks.highest(item is not None, f"{name} batch"):  # shares may differ by a batch
        if is_cut():
            raise CutError
        if item is None and ranks.is_sharded:
            keep_up(batch)
        batch = batch if item is None else item[0]
        yield item
        item = None if item is None else next(batches, None)


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
