"""Where a loader stands inside an epoch, and what finds that place again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset

__all__ = [
    "Stateful",
    "keeps_place",
    "pass_over_indices",
    "read_numbers",
    "tells_position",
    "warn_left",
    "works_by_indices",
]

logger: logging.Logger = logging.getLogger("trainer")


@runtime_checkable
class Stateful(Protocol):
    """A loader that can tell its position itself, such as torchdata's StatefulDataLoader."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def tells_position(loader: Iterable[Any]) -> TypeGuard[Stateful]:
    """Whether the loader can be put where it was, exactly. One of torchdata (0.11) over an iterable
    data set that cannot counts what it passes over twice; and it knows nothing of the random
    numbers of its workers, which only a data set with a state of its own can keep.
    """
    if isinstance(loader, DataLoader) and (
        loader.num_workers or isinstance(loader.dataset, IterableDataset)
    ):
        return isinstance(loader, Stateful) and hasattr(loader.dataset, "state_dict")
    return isinstance(loader, Stateful)


def keeps_place(loader: Iterable[Any]) -> TypeGuard[Stateful]:
    """Whether what the loader tells between two passes is where the next one begins. Those of
    torchdata begin each anew, wherever the last one was left.
    """
    is_known = isinstance(loader, DataLoader) or type(loader).__module__.startswith("torchdata.")
    return isinstance(loader, Stateful) and not is_known


def works_by_indices(loader: Iterable[Any]) -> TypeGuard[DataLoader[Any]]:
    """Whether batches can be passed over without loading them: a map-style data set, in this
    process.
    """
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.num_workers == 0
        and loader.batch_sampler is not None
    )


def read_numbers(loader: Iterable[Any]) -> dict[str, Any]:
    """Returns what may show, by being another one later, how far `loader` has come: the numbers of
    the object in this process that makes the batches. An iterator that it holds is always another.
    """
    part: Any = loader
    if isinstance(loader, DataLoader):
        part = None if loader.num_workers else loader.dataset
    if hasattr(part, "set_epoch"):  # whose numbers follow the epoch
        return {}
    found = getattr(part, "__dict__", {})
    moved = {name: object() for name, value in found.items() if isinstance(value, Iterator)}
    return moved | {name: each for name, each in found.items() if isinstance(each, (int, float))}


def pass_over_indices(loader: DataLoader[Any], skip: int) -> Iterator[Any]:
    """Yields the batches of `loader` behind the first `skip`."""
    assert loader.batch_sampler is not None
    indices = itertools.islice(iter(loader.batch_sampler), skip, None)
    data: Any = loader.dataset
    fetch = getattr(data, "__getitems__", lambda chosen: [data[index] for index in chosen])
    return (loader.collate_fn(fetch(chosen)) for chosen in indices)


def warn_left(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Warns, if the numbers of a loader whose pass was left with a batch fetched ahead have moved,
    that a new pass may go on behind that batch; returns whether it has.
    """
    moved = next((name for name in now if before.get(name) != now[name]), None)
    if moved is not None:
        logger.warning(
            "the last epoch was left with one more batch fetched ahead, which tells the last one "
            "of an epoch, and %r of the train loader has changed in it: if the next epoch goes on "
            "from there, that batch is lost. Instead of a break, end it by run.batches(loader, "
            "limit=N), behind which none is fetched.",
            moved,
        )
    return moved is not None
