"""One item of a loader: tensors in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["batch_size_of", "move_to_device"]


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
