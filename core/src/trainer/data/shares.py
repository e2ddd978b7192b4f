"""Which batches of an epoch are those of one process, where several train together.

Letters: W processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler

from trainer_callback import option_text

from ..config import ConfigError
from ..processes.ranks import Ranks

__all__ = [
    "BatchShare",
    "Share",
    "count_batches",
    "divide",
    "dividing_sampler",
    "is_divided",
    "promised_size",
    "samplers_of",
]

T = TypeVar("T")


class Share:
    """Every W-th item, from that of this process's rank on."""

    def __init__(self, rank: int, world_size: int, *, in_step: bool) -> None:
        """Makes a share; `in_step` leaves out an incomplete last round, so that all processes get
        as many.
        """
        self._rank = rank
        self._world_size = world_size
        self._in_step = in_step

    def count(self, items: int) -> int:
        """Returns how many of `items` are in the share."""
        if self._in_step:
            return items // self._world_size
        return len(range(self._rank, items, self._world_size))

    def place(self, index: int) -> int:
        """Returns where the item `index` of the share is among all."""
        return index * self._world_size + self._rank

    def take(self, items: Iterator[T]) -> Iterator[T]:
        """Returns the items that are in the share."""
        if self._world_size == 1:
            return items
        if self._in_step:
            rounds = zip(*[items] * self._world_size, strict=False)
            return (each[self._rank] for each in rounds)
        return itertools.islice(items, self._rank, None, self._world_size)


_WHOLE: Final = Share(0, 1, in_step=True)


class BatchShare(Sampler[list[int]]):
    """The share of another batch sampler's batches.

    Attributes:
        sampler: that one.
        start: begins to go through it; what the items draw must not change what it draws, or the
            processes would cut their shares from different orders.
    """

    def __init__(self, sampler: Any, share: Share) -> None:
        self.sampler = sampler
        self.share = share
        self.start: Callable[[Any], Iterator[list[int]]] = iter

    def __iter__(self) -> Iterator[list[int]]:
        return self.share.take(self.start(self.sampler))

    def __len__(self) -> int:
        return self.share.count(len(self.sampler))


def divide(loader: Iterable[Any], ranks: Ranks, *, in_step: bool) -> tuple[Iterable[Any], Share]:
    """Returns a loader, and the share of its batches that is this process's.

    A plain DataLoader over a map-style data set becomes one that loads its share only. Any other
    has to give the same batches everywhere, and each process passes over what is not its own. One
    with a DistributedSampler, or one like it, is left alone: somebody has divided it.
    """
    if ranks.is_alone or is_divided(loader):
        return loader, _WHOLE
    share = Share(ranks.rank, ranks.world_size, in_step=in_step)
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return loader, share
    if loader.batch_sampler is None:
        return loader, share
    divided = DataLoader(
        loader.dataset,
        batch_sampler=BatchShare(loader.batch_sampler, share),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
    return divided, _WHOLE


def count_batches(limit: int | float | None, length: int | None, option: str) -> int | None:
    """Returns how many of `length` batches a limit means, at least one; None: all of them.

    Raises:
        ConfigError: it is a share, and the length is not known.
    """
    if not isinstance(limit, float):
        return limit
    if length is None:
        raise ConfigError(
            f"{option_text(option)} is {limit}, a share of a loader whose length is not known. "
            f"Give a number of batches, such as {option_text(option, 100)}."
        )
    return max(1, int(limit * length))


def promised_size(loader: Iterable[Any], share: Share, index: int) -> int | None:
    """Returns how many items the batch `index` of a share of `loader` is made of; None where the
    loader does not say, or batches may pass each other.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    sampler = loader.batch_sampler
    if isinstance(sampler, BatchShare):
        sampler, share = sampler.sampler, sampler.share
    if type(sampler) is not BatchSampler or not getattr(loader, "in_order", True):
        return None
    try:
        items = len(sampler.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    size = sampler.batch_size
    return max(0, min(size, items - share.place(index) * size))


def samplers_of(loader: DataLoader[Any]) -> list[Any]:
    """Returns every sampler that has a say in the order of `loader`."""
    found, each = [loader.sampler], loader.batch_sampler
    while each is not None and each not in found:
        found.append(each)
        inner = getattr(each, "batch_sampler", None)  # of Accelerate's, which divides it
        each = getattr(each, "sampler", inner)
    return found


def is_divided(loader: Iterable[Any]) -> bool:
    """Whether somebody has divided `loader` over the processes: a DistributedSampler or one like
    it, or what says so itself.
    """
    return getattr(loader, "is_divided", False) or dividing_sampler(loader) is not None


def dividing_sampler(loader: Iterable[Any]) -> Any:
    """Returns the sampler of `loader` that draws the items of one process: a DistributedSampler, or
    one that has its `rank` and `num_replicas`. None where there is none.
    """
    if not isinstance(loader, DataLoader):
        return None
    found = (
        sampler
        for sampler in samplers_of(loader)
        if isinstance(sampler, DistributedSampler)
        or (hasattr(sampler, "rank") and hasattr(sampler, "num_replicas"))
    )
    return next(found, None)
