"""Host copies of a state, and the one thread that writes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainer_callback import SnapshotError

__all__ = ["BackgroundWriter", "HostCopier"]


class HostCopier:
    """Copies the tensors of a state into host buffers that are kept for the next time (pinned where
    there is a device).
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def copy(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `state` (plain data and tensors) with every tensor in a host buffer; tensors that
        share memory still do.

        The buffers are overwritten by the next call.
        """
        seen: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
        used: dict[str, torch.Tensor] = {}

        def walk(value: Any, path: str) -> Any:
            if isinstance(value, torch.Tensor):
                return copy_tensor(value, path)
            if isinstance(value, Mapping):
                return {key: walk(item, f"{path}.{key}") for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(walk(item, f"{path}[{i}]") for i, item in enumerate(value))
            return value

        def copy_tensor(tensor: torch.Tensor, path: str) -> torch.Tensor:
            source = tensor.detach()
            key = (source.data_ptr(), source.shape, source.stride())
            if source.numel() and key in seen:
                return seen[key]
            buffer = self._buffers.get(path)
            if buffer is None or (buffer.shape, buffer.dtype) != (source.shape, source.dtype):
                pin = source.device.type == "cuda"
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=pin)
            buffer.copy_(source, non_blocking=source.device.type == "cuda")
            seen[key] = used[path] = buffer
            return buffer

        result = {key: walk(value, str(key)) for key, value in state.items()}
        self._buffers = used
        if any(buffer.is_pinned() for buffer in used.values()):
            torch.cuda.synchronize()
        return result


class BackgroundWriter:
    """Runs one write at a time in a thread; what went wrong or right is fetched by the loop at its
    next boundary.
    """

    def __init__(self, *, sync: bool = False) -> None:
        """Makes a writer; `sync` runs each write at once in the caller's thread."""
        self._sync = sync
        self._thread: threading.Thread | None = None
        self._outcome: SnapshotError | Callable[[], None] | None = None

    def start(self, write: Callable[[], None], done: Callable[[], None]) -> None:
        """Starts `write`; `collect` will call `done` after it. One that is under way must have been
        collected.
        """

        def run() -> None:
            try:
                write()
                self._outcome = done
            except SnapshotError as error:
                self._outcome = error
            except BaseException as error:  # nothing that happens in the thread may be lost
                self._outcome = SnapshotError(f"the snapshot could not be written: {error!r}")

        if self._sync:
            run()
            return
        self._thread = threading.Thread(target=run, name="snapshot-writer")
        self._thread.start()

    def collect(self, *, wait: bool) -> None:
        """Reports a finished write: calls its `done`, or raises its SnapshotError. Nothing happens
        while one is under way, unless `wait`.
        """
        if self._thread is not None:
            if not wait and self._thread.is_alive():
                return
            self._thread.join()
            self._thread = None
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, SnapshotError):
            raise outcome
        if outcome is not None:
            outcome()
