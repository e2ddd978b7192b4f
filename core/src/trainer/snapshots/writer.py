"""Host copies of a state, and the one thread that writes them."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from trainer_callback import RunError, SnapshotError
from trainer_callback.tensors import is_sharded

from ..processes.sharding import find_tensors
from .pinned import Slabs

__all__ = ["BackgroundWriter", "CpuCopier", "copies_by_itself"]

_CHUNK_BYTES: Final = 1 << 23
"""Bytes that are copied at a time."""

_FROM_CARDS: Final = frozenset({"cuda"})
"""Kinds of devices that copy by themselves into pinned memory. Tests add the CPU."""

_Place: TypeAlias = tuple[object, ...]
"""Keys on the way to a tensor. A string of them would not do: `a.b` may be one key, or two."""


def copies_by_itself(device: torch.device) -> bool:
    """Whether a device copies into pinned memory, which takes long to be had."""
    return device.type in _FROM_CARDS


class CpuCopier:
    """Copies the tensors of a state into host buffers that are kept for the next time (pinned where
    there is a device).

    Attributes:
        is_prepared: buffers have been taken, or are on the way.
    """

    def __init__(self) -> None:
        self._buffers: dict[_Place, tuple[object, Tensor | None]] = {}
        self._used: dict[_Place, tuple[object, Tensor | None]] = {}
        self._seen: dict[tuple[object, ...], Tensor] = {}
        self._devices: set[torch.device] = set()
        self._slabs = Slabs(pin=torch.cuda.is_available())
        self.is_prepared: bool = False

    def prepare(self, tensors: Iterable[Tensor]) -> None:
        """Takes the buffers for `tensors` in a thread; only those on a device take long."""
        self.is_prepared = True
        if found := _find_on_cards(tensors):
            self._slabs.reserve_beside([each.nbytes for each in found], found[0].device)

    def release(self) -> None:
        """Gives the buffers back, which nobody may use any more."""
        self._buffers, self._used, self._seen = {}, {}, {}  # the last two of a copy that failed
        self.is_prepared = False
        self._slabs.release()

    def copy(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `state` (plain data and tensors) with every tensor in a host buffer; tensors that
        are the same memory still are.

        The buffers are overwritten by the next call.
        """
        self._used, self._seen, self._devices = {}, {}, set()
        self._pieces: deque[tuple[int, int, int]] = deque()
        if not self._buffers:
            found = _find_on_cards(tensor for _, tensor in find_tensors(state))
            self._slabs.reserve([each.nbytes for each in found])
        result = {key: self._walk(value, (key,)) for key, value in state.items()}
        self._move_pieces()
        for device in self._devices:
            torch.cuda.synchronize(device)
        self._buffers, self._used, self._seen = self._used, {}, {}
        return result

    def _walk(self, value: Any, place: _Place) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place)
        if isinstance(value, Mapping):
            return {key: self._walk(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._walk(item, (*place, i)) for i, item in enumerate(value))
        return value

    def _copy_tensor(self, source: Tensor, place: _Place) -> Tensor:
        if not _is_plain(source):
            return source.cpu().clone()
        key = (source.data_ptr(), source.dtype, source.shape, source.stride(), source.device)
        if source.numel() and key in self._seen:
            return self._seen[key]
        form = (source.shape, source.dtype, source.stride())
        known, buffer = self._buffers.get(place, (None, None))
        on_cuda = source.device.type == "cuda"
        if buffer is None or known != form:
            on_card = copies_by_itself(source.device)
            buffer = self._slabs.take(source) if on_card else torch.empty_like(source, device="cpu")
        if _is_same_run(buffer, source):
            to, start, size = buffer.data_ptr(), source.data_ptr(), source.nbytes
            for at in range(0, size, _CHUNK_BYTES):
                self._pieces.append((to + at, start + at, min(_CHUNK_BYTES, size - at)))
        else:
            buffer.copy_(source, non_blocking=on_cuda)
        if on_cuda:
            self._devices.add(source.device)
        self._seen[key], self._used[place] = buffer, (form, buffer)
        return buffer

    def _move_pieces(self) -> None:
        """Copies what is on the host, on two threads if torch has as many. Tensor by tensor torch
        would wait for all its threads each time, which takes five times as long where something
        else wants the processor (148 tensors and their AdamW state, two cores).
        """

        def work() -> None:
            try:
                while True:
                    ctypes.memmove(*self._pieces.popleft())
            except IndexError:
                return

        helper = threading.Thread(target=work)
        if torch.get_num_threads() > 1 and len(self._pieces) > 1:
            with contextlib.suppress(RuntimeError):  # the system has no thread left
                helper.start()
        work()
        if helper.ident is not None:
            helper.join()


def _find_on_cards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns those that are copied from a card by themselves, the same memory once."""
    found = {
        (each.data_ptr(), each.dtype, each.shape, each.stride()): each
        for each in tensors
        if copies_by_itself(each.device) and not is_sharded(each) and _is_plain(each)
    }
    return [*found.values()]


def _is_plain(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are the bytes in its memory, in its order: not of a view that
    conjugates or negates them, which a card would copy without that.
    """
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and not (tensor.is_conj() or tensor.is_neg())


def _is_same_run(buffer: Tensor, source: Tensor) -> bool:
    """Whether the bytes of both, as they lie in the host's memory, are the same."""
    return source.device.type == "cpu" and buffer.stride() == source.stride()


class BackgroundWriter:
    """Runs one write at a time in a thread; what went wrong or right is fetched by the loop at its
    next boundary.
    """

    def __init__(self, *, sync: bool = False) -> None:
        """Makes a writer; `sync` runs each write at once in the caller's thread."""
        self._sync = sync
        self._thread: threading.Thread | None = None
        self._outcome: Exception | Callable[[], None] | None = None

    def start(self, write: Callable[[], None], done: Callable[[], None]) -> None:
        """Starts `write`; `collect` will call `done` after it. One that is under way must have been
        collected.
        """

        def run() -> None:
            try:
                write()
                self._outcome = done
            except (SnapshotError, RunError) as error:
                self._outcome = error
            except Exception as error:  # nothing that happens in the thread may be lost
                self._outcome = SnapshotError(f"the snapshot could not be written: {error!r}")

        if not self._sync:
            thread = threading.Thread(target=run, name="snapshot-writer")
            with contextlib.suppress(RuntimeError):  # the system has no thread left
                thread.start()
                self._thread = thread
                return
        run()

    def collect(self, *, wait: bool) -> None:
        """Reports a finished write: calls its `done`, or raises its SnapshotError or RunError.
        Nothing happens while one is under way, unless `wait`.
        """
        if self._thread is not None:
            if not wait and self._thread.is_alive():
                return
            self._thread.join()
            self._thread = None
        outcome, self._outcome = self._outcome, None
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                outcome()
        finally:
            del outcome  # whose traceback has this frame
