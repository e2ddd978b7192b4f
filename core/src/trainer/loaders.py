"""The data side of the loop: an order that depends on (seed, epoch) only, the position inside it,
copies to the device.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, IterableDataset

from .config import ConfigError

__all__ = ["EmptyLoaderError", "EpochLoader", "batch_size_of", "check_loader", "move_to_device"]


class EmptyLoaderError(RuntimeError):
    """A loader gave no batch."""


@runtime_checkable
class _Stateful(Protocol):
    """A loader that can tell its position itself, such as torchdata's StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EpochLoader:
    """One epoch of a loader at a time, from any position.

    The loader's own generators are seeded from (seed, epoch), so that the order and the seeds of
    its workers depend on nothing else.
    """

    def __init__(self, loader: Iterable[Any], seed: int, name: str) -> None:
        """Wraps `loader`; `name` is how messages call it."""
        self._loader = loader
        self._seed = seed
        self._name = name

    @property
    def length(self) -> int | None:
        """Batches per epoch, or None where the loader cannot say (no `__len__`, or an iterable data
        set's guess).
        """
        if isinstance(self._loader, DataLoader) and isinstance(
            self._loader.dataset, IterableDataset
        ):
            return None
        try:
            return len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def iterate(
        self,
        epoch: int,
        skip: int = 0,
        state: Mapping[str, Any] | None = None,
        in_place: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, bool]]:
        """Yields `(batch, is_last)` of `epoch` from batch `skip` on.

        Args:
            state: what `state()` returned at that position, for a loader that can be put there;
                else the first batches are passed over.
            in_place: called when that is done, before the first batch is fetched.

        Raises:
            EmptyLoaderError: the epoch has no batch.
        """
        self._seed_generators(epoch)
        length = self.length
        if skip and state is not None and isinstance(self._loader, _Stateful):
            self._loader.load_state_dict(dict(state))
            batches = iter(self._loader)
        else:
            batches = self._pass_over(skip)
        in_place()
        count = skip
        if length is not None:
            for batch in itertools.islice(batches, length - skip):
                count += 1
                yield batch, count == length
            if 0 < count < length:
                raise EmptyLoaderError(
                    f"the {self._name} loader promised {length} batches in epoch {epoch} and gave "
                    f"{count}."
                )
        else:
            for batch, is_last in _look_ahead(batches):
                count += 1
                yield batch, is_last
        if count == 0:
            raise EmptyLoaderError(
                f"the {self._name} loader gave no batch in epoch {epoch}. Is it an iterator that "
                "is used up? "
                "Pass an iterable that can be started again."
            )

    def state(self) -> dict[str, Any] | None:
        """Returns the loader's own position, where it has one."""
        return self._loader.state_dict() if isinstance(self._loader, _Stateful) else None

    def _pass_over(self, skip: int) -> Iterator[Any]:
        """Starts an iteration behind the first `skip` batches, without loading them where the
        loader works by indices in this process.
        """
        loader = self._loader
        if skip and isinstance(loader, DataLoader) and _works_by_indices(loader):
            assert loader.batch_sampler is not None
            indices = itertools.islice(iter(loader.batch_sampler), skip, None)
            return (loader.collate_fn(_fetch(loader.dataset, chosen)) for chosen in indices)
        batches = iter(loader)
        for _ in range(skip):
            next(batches, None)
        return batches

    def _seed_generators(self, epoch: int) -> None:
        loader = self._loader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        if not isinstance(loader, DataLoader):
            return
        loader.generator = _make_generator(self._seed, epoch, "workers")
        inner = getattr(loader.batch_sampler, "sampler", None)
        samplers: list[Any] = [loader.sampler, loader.batch_sampler, inner]
        for sampler in {id(each): each for each in samplers}.values():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            elif hasattr(sampler, "generator"):
                sampler.generator = _make_generator(self._seed, epoch, "order")


def check_loader(loader: Iterable[Any] | None, name: str) -> None:
    """Refuses a loader that is known to be empty.

    Raises:
        ConfigError: its length is 0; the message has the sizes.
    """
    if loader is None:
        return
    if not isinstance(loader, Iterable):
        raise ConfigError(
            f"the {name} loader is a {type(loader).__name__}, which cannot be iterated."
        )
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        return
    if length == 0:
        sizes = ""
        if isinstance(loader, DataLoader):
            items = len(loader.dataset)  # type: ignore[arg-type]
            sizes = (
                f" ({items} items, batch size {loader.batch_size}, drop_last={loader.drop_last})"
            )
        raise ConfigError(
            f"the {name} loader is empty{sizes}. Give it more data or a smaller batch size."
        )


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Returns `batch` (tensors in tuples, lists and dicts) on `device`; copies from pinned memory
    do not block.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_to_device(value, device) for value in batch)
    return batch


def batch_size_of(batch: Any) -> int:
    """Returns the first dimension of the first tensor in `batch`, or 1."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    items = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(items, Iterable) and not isinstance(items, (str, bytes)):
        for item in items:
            if isinstance(item, (torch.Tensor, Mapping, list, tuple)):
                return batch_size_of(item)
    return 1


def _works_by_indices(loader: DataLoader[Any]) -> bool:
    """Whether batches can be passed over without loading them: a map-style data set, in this
    process.
    """
    indexed = not isinstance(loader.dataset, IterableDataset)
    return indexed and loader.num_workers == 0 and loader.batch_sampler is not None


def _look_ahead(batches: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    end = object()
    batch = next(batches, end)
    while batch is not end:
        following = next(batches, end)
        yield batch, following is end
        batch = following


def _fetch(dataset: Any, indices: list[int]) -> Any:
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


def _make_generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
