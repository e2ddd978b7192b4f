"""Random numbers that a loader draws in this process, from a stream of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from ..processes.rng import RandomStream
from ..processes.signals import held_signals
from .shares import BatchShare, samplers_of

__all__ = ["draw_from", "draws_here"]

_END: Final = object()


def draws_here(loader: Iterable[Any], length: int | None) -> bool:
    """Whether the next batch of `loader` may depend on draws from the global generators of this
    process that were made before: an iterable data set without workers, a sampler of somebody's
    own, somebody's own loader. One that has `set_epoch` says that it does not.
    """
    if not isinstance(loader, DataLoader):
        return not isinstance(loader, Sequence) and not hasattr(loader, "set_epoch")
    if length is None and loader.num_workers == 0:
        return True
    if isinstance(loader.dataset, IterableDataset):
        return False
    known = (SequentialSampler, BatchSampler, BatchShare)
    return not all(
        type(sampler) in known or hasattr(sampler, "set_epoch") or hasattr(sampler, "generator")
        for sampler in samplers_of(loader)
    )


def draw_from(stream: RandomStream | None, loader: Iterable[Any]) -> Iterator[Any]:
    """Returns an iteration of `loader` that draws its random numbers from `stream`."""
    held: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(loader, DataLoader) and loader.num_workers:
        context = loader.multiprocessing_context or multiprocessing
        held = held_signals(forks=context.get_start_method() == "fork")
    with held:
        if stream is None:
            return iter(loader)
        with stream:
            batches = iter(loader)
    return _draw_each(stream, batches)


def _draw_each(stream: RandomStream, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with stream:
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch
