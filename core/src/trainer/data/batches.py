"""One item of a loader: tensors, in whatever kind of container somebody's loader makes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch

__all__ = ["clone", "count_writes", "detach", "move_to_device", "parts_of", "to_host"]


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Returns `batch` on `device`, of the kind that it is; copies from pinned memory do not block.

    What has a method `to(device)` is moved by that. Containers, dataclasses and objects with
    tensors among their attributes are copied, with the tensors in them moved; anything else is
    left as it is.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if callable(getattr(type(batch), "to", None)):
        return _let_move(batch, device)
    return _rebuild(batch, partial(move_to_device, device=device))


def detach(outputs: Any) -> Any:
    """Returns `outputs`, of the kind that they are, with each tensor detached and none copied."""
    return outputs.detach() if isinstance(outputs, torch.Tensor) else _rebuild(outputs, detach)


def clone(outputs: Any) -> Any:
    """Returns `outputs`, of the kind that they are, with each tensor copied, its graph included."""
    return outputs.clone() if isinstance(outputs, torch.Tensor) else _rebuild(outputs, clone)


def to_host(outputs: Any) -> Any:
    """Returns `outputs`, of the kind that they are, with each tensor detached and copied to the
    CPU: nothing keeps the memory of the rest alive, and nothing changes them.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs.detach().clone() if outputs.is_cpu else outputs.detach().cpu()
    return _rebuild(outputs, to_host)


def count_writes(batch: Any) -> list[int]:
    """Returns how often each tensor in `batch` was written to in place, as far as torch counts."""
    if isinstance(batch, torch.Tensor):
        return [] if batch.is_inference() else [batch._version]
    if isinstance(batch, (str, bytes, int, float)):  # of which there may be many
        return []
    parts = batch if isinstance(batch, Mapping) else parts_of(batch) or {}
    items = batch if isinstance(batch, (list, tuple)) else parts.values()
    return [count for item in items for count in count_writes(item)]


def _rebuild(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a container like `batch`, of what `change` makes of each item."""
    if isinstance(batch, Mapping):
        return _rebuild_mapping(batch, change)
    if isinstance(batch, (list, tuple)):
        return _rebuild_sequence(batch, change)
    return _rebuild_parts(batch, change)


def parts_of(batch: Any) -> dict[str, Any] | None:
    """Returns the attributes of a dataclass, or of an object with tensors among them; None for
    anything else.
    """
    if isinstance(batch, type):
        return None
    names = [*getattr(batch, "__dict__", ())]
    for kind in type(batch).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    parts = {
        name: getattr(batch, name)
        for name in names
        if not name.startswith("__") and hasattr(batch, name)
    }
    is_known = dataclasses.is_dataclass(batch) or any(
        isinstance(value, torch.Tensor) for value in parts.values()
    )
    return parts if is_known else None


def _let_move(batch: Any, device: torch.device) -> Any:
    own: Any = batch if isinstance(batch, tuple) else copy.copy(batch)  # many change themselves
    moved = own.to(device)
    return own if moved is None else moved


def _rebuild_mapping(batch: Mapping[Any, Any], change: Callable[[Any], Any]) -> Any:
    moved = {key: change(value) for key, value in batch.items()}
    if type(batch) is dict:
        return moved
    if not isinstance(batch, MutableMapping):
        return type(batch)(moved)  # type: ignore[call-arg]
    own = copy.copy(batch)  # with its default factory, its order, its attributes
    for key, value in moved.items():
        own[key] = value
    return own


def _rebuild_sequence(batch: Any, change: Callable[[Any], Any]) -> Any:
    moved = [change(value) for value in batch]
    if isinstance(batch, tuple):
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    own = copy.copy(batch)
    own[:] = moved
    return own


def _rebuild_parts(batch: Any, change: Callable[[Any], Any]) -> Any:
    parts = parts_of(batch)
    if parts is None:
        return batch
    own = copy.copy(batch)
    for name, value in parts.items():
        object.__setattr__(own, name, change(value))  # also where it is frozen
    return own
