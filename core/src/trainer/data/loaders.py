"""The data side of the loop: an order that depends on (seed, epoch) only, the position inside it,
copies to the device.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainer_callback import RunError
from trainer_callback.state import to_plain

from ..processes.ranks import ALONE, Ranks
from ..processes.rng import RandomStream
from ..processes.signals import WorkerShield
from .batch_size import BatchSizes
from .copies import copy_loader, copy_of_kept_place
from .draws import draw_from, draws_here
from .loader_check import check_loader, check_whole
from .place import (
    keeps_place,
    pass_over_indices,
    read_numbers,
    tells_position,
    warn_left,
    works_by_indices,
)
from .shares import BatchShare, divide, is_divided, promised_size, samplers_of

__all__ = ["EmptyLoaderError", "EpochLoader"]

logger: logging.Logger = logging.getLogger("trainer")

_END: Final = object()


class EmptyLoaderError(RunError):
    """A loader gave no batch."""


class EpochLoader:
    """One epoch of a loader at a time, from any position.

    The loader's own generators are seeded from (seed, epoch), so that the order and the seeds of
    its workers depend on nothing else. A loader that may draw from the global generators in this
    process gets a stream of its own, so that its first batches can be passed over without the
    model's draws between them.

    Of several processes each gets its share of the batches; see `shares.divide`.

    Attributes:
        given: the loader that is wrapped.
        limit: go through so many batches at most; None: all.
        sizes: counts the items of each batch, by the user's function; None: there is none.
        items: of the batch that was yielded last, as that function counts them, or else as the
            loader promises; 1 for each where that is not known.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        name: str,
        ranks: Ranks = ALONE,
        *,
        in_step: bool = True,
    ) -> None:
        """Wraps `loader`.

        Args:
            name: how messages call it.
            in_step: all processes get as many batches, so an incomplete last round is left out;
                else their shares may differ by a batch, and be empty, if the model is whole.

        Raises:
            ConfigError: it is no loader, known to be empty, or to have no batch for some process;
                or, not in step, a sampler counts items twice.
        """
        check_loader(loader, name, ranks.world_size if in_step or ranks.is_sharded else 1)
        if not in_step:
            check_whole(loader, name, ranks.world_size)
        self.given: Iterable[Any] = loader
        self._loader, self._share = divide(loader, ranks, in_step=in_step)
        self.ranks: Ranks = ranks
        self._in_step = in_step and not ranks.is_alone
        self._may_be_empty = not in_step and not ranks.is_alone
        is_own = self._loader is not loader  # what its workers load, no other process does
        self._workers = f"workers of rank {ranks.rank}" if is_own and ranks.rank else "workers"
        self._seed, self._name = seed, name
        self._fresh = copy_of_kept_place(self._loader)
        self._stream: RandomStream | None = None
        self._ahead: dict[str, Any] | None = None
        self._is_longer = self._is_told = False
        self._left: dict[str, Any] | None = None
        self.limit: int | None = None
        self.sizes: BatchSizes | None = None
        self.items: float = 1

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
            count = self._share.count(len(self._loader))  # type: ignore[arg-type]
        except TypeError:
            return None
        return count if self.limit is None else min(count, self.limit)

    def pass_apart(self, epoch: int) -> Iterator[Any]:
        """Returns the batches of a pass in the order of `epoch`, of a copy: no pass of this one, no
        other process, and no random numbers notice it.

        Raises:
            UsageError: the loader cannot be copied.
        """
        other = copy.copy(self)
        other._loader = copy_loader(self._loader if self._fresh is None else self._fresh)
        other._in_step, other._stream, other._ahead, other._left = False, None, None, None
        stream = RandomStream(_make_seed(self._seed, epoch, "pass apart"))
        return draw_from(stream, (batch for batch, _ in other.iterate(epoch)))

    def _count_items(self, batch: Any, index: int) -> float:
        promised = self.promised_size(index)
        if self.sizes is not None:
            return self.sizes.count(batch, promised)
        return 1 if promised is None else promised

    @property
    def whole_length(self) -> int | None:
        """Batches of all processes together, or None where the loader cannot say."""
        length = self.length
        if length is None or is_divided(self.given):
            return length and length * self.ranks.world_size
        return len(self.given)  # type: ignore[arg-type]

    def promised_size(self, index: int) -> int | None:
        """Items that the batch `index` of an epoch is made of; None where that is not certain."""
        return promised_size(self._loader, self._share, index)

    def iterate(
        self,
        epoch: int,
        skip: int = 0,
        state: Mapping[str, Any] | None = None,
        in_place: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, bool]]:
        """Yields `(batch, is_last)` of `epoch` from batch `skip` on.

        Args:
            state: what `state()` returned at that position, or between two passes, for a loader
                that can be put there; else the first batches are passed over.
            in_place: called when that is done, before the first batch is fetched.

        Raises:
            EmptyLoaderError: the epoch has no batch, or fewer than the loader promised, or than
                that of another process.
        """
        count, length = skip, self.length
        if self._in_step:
            self._check_length(length, epoch)
        if length is not None and 0 < length <= skip:
            return
        try:
            before = self._look_back(skip)
            batches = self._start(epoch, skip, state)
            in_place()
            if length is None and self.limit is not None:
                batches = itertools.islice(batches, max(0, self.limit - skip))
            for batch, is_last in _mark_last(batches, length, skip, self._look_ahead):
                count += 1
                if self._in_step and length is None:
                    self._check_end(is_last, count, epoch)
                if is_last or count == skip + 1 or self.sizes is not None:
                    self.items = self._count_items(batch, count - 1)
                self._left = before if length is None and not is_last else None
                yield batch, is_last
            if length is not None and count == length:
                self._reach_end(batches, length)
        except Exception as error:
            self._locate(error, epoch, count)
            raise
        self._check_count(count, length, epoch)

    def _look_back(self, skip: int) -> dict[str, Any]:
        """Returns the loader's numbers; looks whether the last pass has lost a batch, once."""
        numbers, left, self._left = read_numbers(self._loader), self._left, None
        if left is not None and not skip and self._name == "train" and not self._is_told:
            self._is_told = warn_left(left, numbers)
        return numbers

    def _check_count(self, count: int, length: int | None, epoch: int) -> None:
        if count == 0 and not self._may_be_empty:
            when = f" in epoch {epoch}" if self._name == "train" else ""
            raise EmptyLoaderError(
                f"the {self._name} loader gave no batch{when}. Is it an iterator that "
                "is used up? Pass an iterable that can be started again."
            )
        if length is not None and count < length:
            raise EmptyLoaderError(
                f"the {self._name} loader promised {length} batches in epoch {epoch} and gave "
                f"{count}."
            )

    def _reach_end(self, batches: Iterator[Any], length: int) -> None:
        """Lets the loader do what stands behind its last batch, as the end of a `for` does."""
        if self.limit is None and next(batches, _END) is not _END and not self._is_longer:
            self._is_longer = True
            logger.warning(
                "the %s loader promises %d batches and has more, which are not used. Correct its "
                "__len__.",
                self._name,
                length,
            )

    def state(self, *, in_pass: bool) -> dict[str, Any] | None:
        """Returns the loader's own position, where it has one: the one behind the batch that was
        yielded last, or, between two passes, where the next one begins.
        """
        if not in_pass:
            return self._read_position() if keeps_place(self._loader) else None
        return self._ahead if self.length is None else self._read_position()

    def _read_position(self) -> dict[str, Any] | None:
        if not tells_position(self._loader):
            return None
        stream = None if self._stream is None else self._stream.state
        return {"loader": to_plain(self._loader.state_dict(), "loader"), "stream": stream}

    def _look_ahead(self) -> None:
        self._ahead = self._read_position()

    def _start(self, epoch: int, skip: int, state: Mapping[str, Any] | None) -> Iterator[Any]:
        """Returns the batches from `skip` on, all seeds set for `epoch`."""
        loader = self._loader
        self._seed_loader(epoch)
        self._stream = self._make_stream(epoch) if draws_here(loader, self.length) else None
        if not skip and state is not None and keeps_place(loader):
            loader.load_state_dict(state["loader"])
            batches = draw_from(self._stream, loader)
            if (first := next(batches, _END)) is _END:  # so it was put at the end of a pass
                return self._start(epoch, 0, None)
            return self._share.take(itertools.chain([first], batches))
        if skip and state is not None and tells_position(loader):
            loader.load_state_dict(state["loader"])
            batches = draw_from(self._stream, loader)
            if self._stream is not None:
                self._stream.state = state["stream"]
            return self._share.take(batches)
        if skip and self._stream is None and works_by_indices(loader):
            return pass_over_indices(loader, skip)
        batches = self._share.take(draw_from(self._stream, loader))
        if (done := sum(1 for _ in itertools.islice(batches, skip))) < skip:
            raise EmptyLoaderError(
                f"the {self._name} loader gave {done} batches in epoch {epoch}, and the run stands "
                f"behind batch {skip} of it. Give it the data of the snapshot's run."
            )
        return batches

    def _make_stream(self, epoch: int) -> RandomStream:
        """Returns the stream of what the loader draws; of one that is divided, what its items draw,
        and its sampler gets one that is the same in all processes.
        """
        stream = RandomStream(_make_seed(self._seed, epoch, "draws"))
        sampler = getattr(self._loader, "batch_sampler", None)
        if not isinstance(sampler, BatchShare):
            return stream
        sampler.start = partial(draw_from, stream)
        return RandomStream(_make_seed(self._seed, epoch, f"draws of rank {self.ranks.rank}"))

    def _seed_loader(self, epoch: int) -> None:
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        loader = getattr(self._loader, "seeded", self._loader)
        if not isinstance(loader, DataLoader):
            return
        loader.generator = torch.Generator().manual_seed(
            _make_seed(self._seed, epoch, self._workers)
        )
        loader._iterator = None  # workers that outlive an epoch would draw on from its numbers
        if not isinstance(loader.worker_init_fn, WorkerShield):
            loader.worker_init_fn = WorkerShield(loader.worker_init_fn)
        for sampler in samplers_of(loader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            elif hasattr(sampler, "generator"):
                order = _make_seed(self._seed, epoch, "order")
                sampler.generator = torch.Generator().manual_seed(order)

    def _check_length(self, length: int | None, epoch: int) -> None:
        lengths = self.ranks.gather(length, "start of an epoch")
        if len({*lengths}) > 1:
            raise EmptyLoaderError(
                f"the {self._name} loader has {lengths} batches for the processes in epoch "
                f"{epoch}. Give every process as many, or they would wait for each other."
            )

    def _check_end(self, is_last: bool, count: int, epoch: int) -> None:
        (ended,) = self.ranks.total([is_last], "end of an epoch")
        if 0 < ended < self.ranks.world_size:
            more = "has more" if not is_last else "has no more, and another process has"
            raise EmptyLoaderError(
                f"the {self._name} loader gave {count} batches in epoch {epoch} and {more}. Give "
                "every process as many, or they would wait for each other."
            )

    def _locate(self, error: Exception, epoch: int, batch: int) -> None:
        """Says where a loader failed, beside its own exception."""
        where = f"the {self._name} loader failed in epoch {epoch} at batch {batch}"
        logger.error("%s: %s: %s", where, type(error).__name__, str(error))
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(where)


def _mark_last(
    batches: Iterator[Any], length: int | None, skip: int, look_ahead: Callable[[], None]
) -> Iterator[tuple[Any, bool]]:
    """Yields each batch and whether it is the epoch's last. Where the length is not known, that
    takes the batch behind it; `look_ahead` is called before that one is fetched.
    """
    if length is not None:
        for count, batch in enumerate(itertools.islice(batches, length - skip), skip + 1):
            yield batch, count == length
        return
    batch = next(batches, _END)
    while batch is not _END:
        look_ahead()
        following = next(batches, _END)
        yield batch, following is _END
        batch = following


def _make_seed(seed: int, epoch: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
