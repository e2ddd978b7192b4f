"""Host memory that a card copies into: pinned, in few slabs, taken before it is needed.

To pin a gigabyte takes half a second, and torch rounds what it pins up to a power of two: each
tensor alone would waste a third. Knows tensors and sizes only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

__all__ = ["Slabs", "plan_slabs"]

logger: logging.Logger = logging.getLogger("trainer")

_ALIGNED: Final = 512
"""Bytes: where a tensor begins."""

_Plan: TypeAlias = "list[tuple[int, list[int]]]"


def plan_slabs(sizes: Iterable[int]) -> _Plan:
    """Returns the bytes of each slab, a power of two, and what lies in it one behind the other:
    `sizes` in bytes, rounded up. Of many tensors a twentieth at most is wasted, of few less than
    one slab would waste.
    """
    left = sorted(map(_round_up, sizes), reverse=True)
    return _divide(left, spare=sum(left) // 32)


def _divide(left: Sequence[int], spare: int) -> _Plan:
    if not left:
        return []
    need = sum(left)
    size = 1 << (need - 1).bit_length()
    one: _Plan = [(size, [*left])]
    if size - need <= spare or left[0] > size // 2:
        return one
    room, inside, outside = size // 2, list[int](), list[int]()
    for each in left:
        (inside if each <= room else outside).append(each)
        room -= each if each <= room else 0
    several = [(size // 2, inside), *_divide(outside, spare)]
    return min(several, one, key=lambda plan: sum(slab for slab, _ in plan))


def _round_up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class Slabs:
    """Memory for copies of tensors. Where none can be pinned, it is ordinary memory."""

    def __init__(self, *, pin: bool = True) -> None:
        """Holds nothing yet; without `pin` all of it is ordinary."""
        self._pin, self._may_pin, self._has_pinned = pin, pin, False
        self._free: defaultdict[int, list[tuple[Tensor, int]]] = defaultdict(list)
        self._thread: threading.Thread | None = None

    def reserve_beside(self, sizes: Sequence[int], device: torch.device) -> None:
        """As `reserve`, in a thread; whoever needs the memory waits for it.

        Args:
            device: that of the caller, whose context the thread is to use.
        """

        def run() -> None:
            on_card = device.type == "cuda"
            context = torch.cuda.device(device) if on_card else contextlib.nullcontext()
            with context, contextlib.suppress(RuntimeError):  # no memory: the copy will say so
                self._take_in(sizes)

        self._wait()
        thread = threading.Thread(target=run, name="snapshot-memory")
        with contextlib.suppress(RuntimeError):  # the system has no thread left
            thread.start()
            self._thread = thread

    def reserve(self, sizes: Sequence[int]) -> None:
        """Takes memory for tensors of `sizes` bytes, beside what is free already."""
        self._wait()
        self._take_in(sizes)

    def take(self, source: Tensor) -> Tensor:
        """Returns a tensor like `source` on the host, with a storage of its own."""
        if not source.numel():
            return torch.empty_like(source, device="cpu")
        self._wait()
        if not self._free[_round_up(source.nbytes)]:
            self.reserve([source.nbytes])
        slab, start = self._free[_round_up(source.nbytes)].pop()
        strides = torch.empty_like(source, device="meta").stride()
        flat = torch.frombuffer(
            slab.numpy(), dtype=source.dtype, count=source.numel(), offset=start
        )
        return flat.as_strided(source.shape, strides)

    def release(self) -> None:
        """Gives the memory back, once nobody has a tensor in it; the next run may pin again."""
        self._wait()
        self._free.clear()
        self._pin = self._may_pin
        empty = getattr(torch.accelerator, "empty_host_cache", None)  # not in every torch
        if self._has_pinned and empty is not None:
            self._has_pinned = False
            with contextlib.suppress(RuntimeError):  # a card that fails has said so, or will
                torch.accelerator.synchronize()  # or torch thinks that copies are under way
                empty()

    def _take_in(self, sizes: Sequence[int]) -> None:
        wanted = Counter(map(_round_up, filter(None, sizes)))
        wanted -= Counter({size: len(places) for size, places in self._free.items()})
        for size, inside in plan_slabs(wanted.elements()):
            slab, start = self._allocate(size), 0
            for each in inside:
                self._free[each].append((slab, start))
                start += each

    def _allocate(self, size: int) -> Tensor:
        if self._pin:
            try:
                slab = torch.empty(size, dtype=torch.uint8, pin_memory=True)
                self._has_pinned = True
                return slab
            except RuntimeError as error:
                self._pin = False
                logger.warning(
                    "no %.1f GB of memory can be pinned for snapshots: %s. They are copied to "
                    "ordinary memory, which takes longer.",
                    *(size / 1e9, str(error).partition("\n")[0]),
                )
        return torch.empty(size, dtype=torch.uint8)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
