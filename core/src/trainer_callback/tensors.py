"""What a tensor is that several processes hold together, part by part. Imports torch only where it
is there already.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = ["is_sharded", "local_part", "shard_group", "whole_tensor"]


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor; where there is one, its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Returns what this process holds of `tensor`, in the same memory; it may be empty."""
    if not is_sharded(tensor):
        return tensor
    torch: Any = sys.modules["torch"]
    with torch.no_grad():
        return tensor.to_local()


def shard_group(tensor: Tensor) -> ProcessGroup | None:
    """Returns the processes that hold the parts of `tensor`, each another one; None where this one
    holds all of it. Processes that hold a copy (of a mesh of replicas) are not among them.
    """
    if is_sharded(tensor):
        for dimension, placement in enumerate(tensor.placements):
            if placement.is_shard():
                return tensor.device_mesh.get_group(dimension)
    return None


def whole_tensor(tensor: Tensor) -> Tensor:
    """Returns all of `tensor`; of a sharded one, all processes that hold a part have to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor
