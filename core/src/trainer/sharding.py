"""Tensors that several processes hold in parts: the DTensors that FSDP2's `fully_shard` makes of a
model's parameters.

What passes between processes here is a fixed point that each of them must come to, in the same
order. A model that is not sharded is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from .config import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = [
    "check_sharding",
    "fsdp_modules",
    "gather_state",
    "gather_weights",
    "is_sharded",
    "local_part",
    "reshard",
    "scatter_optimizer_state",
    "scatter_state",
    "shard_group",
]


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor; where there is one, its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Returns what this process holds of `tensor`, in the same memory; it may be empty."""
    if not is_sharded(tensor):
        return tensor
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


def fsdp_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Yields the modules on which `fully_shard` was called, the outermost first."""
    package = sys.modules.get("torch.distributed.fsdp")
    if package is not None:
        yield from (each for each in model.modules() if isinstance(each, package.FSDPModule))


def check_sharding(model: nn.Module, world_size: int) -> bool:
    """Returns whether `model` is sharded, as a whole and over all processes.

    Raises:
        ConfigError: a part of it is, or in another way than `fully_shard` does it by itself.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sharded = [name for name, parameter in trained.items() if is_sharded(parameter)]
    if not sharded:
        return False
    whole = [name for name in trained if name not in {*sharded}]
    if whole:
        raise ConfigError(
            f"{whole[0]} is not sharded, and {sharded[0]} is: nobody would average its gradient. "
            "Call fully_shard on the model itself, after its parts."
        )
    found = trained[sharded[0]]
    assert is_sharded(found)
    mesh, shards = found.device_mesh, [p for p in found.placements if p.is_shard()]
    if not any(fsdp_modules(model)) or len(shards) != 1 or mesh.size() != world_size:
        raise ConfigError(
            f"{sharded[0]} lies on a mesh of {mesh.size()} of {world_size} processes as "
            f"{found.placements}. Shard over all of them by fully_shard; tensor and pipeline "
            "parallelism are not supported, for each process gets batches of its own."
        )
    return True


def reshard(model: nn.Module) -> None:
    """Makes the parameters of `model` the sharded ones again, which a forward pass without a
    backward pass leaves whole.
    """
    for module in fsdp_modules(model):
        module.reshard()


def gather_state(value: Any, *, keep: bool) -> Any:
    """Returns `value` (containers, tensors and other things) with whole tensors in place of sharded
    ones: on the CPU where `keep`, elsewhere nothing, so that no device has to hold the whole model.
    """
    if is_sharded(value):
        whole = value.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: gather_state(item, keep=keep) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gather_state(item, keep=keep) for item in value)
    return value


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Any]:
    """Returns the `state_dict` of `model` as `gather_state` does; tied weights, which are gathered
    once, are the same memory.
    """
    state = model.state_dict()
    first: dict[int, str] = {}
    whole: dict[str, Any] = {}
    names = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for name, value in state.items():
        source = names.get(name, name)
        is_tied = is_sharded(value) and source in whole
        whole[name] = whole[source] if is_tied else gather_state(value, keep=keep)
    return whole


def scatter_state(whole: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `whole` in the form of `own`: of what is sharded there, the main process's tensor is
    divided. A process that has no `whole` but an empty one keeps what is not sharded.
    """
    return {
        name: _scatter(whole.get(name, None if is_sharded(value) else value), value)
        for name, value in own.items()
    }


def scatter_optimizer_state(
    whole: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Mapping[str, Any]:
    """Returns the `whole` state of an optimizer with each tensor that belongs to a sharded
    parameter, and has its shape, divided as it is.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(map(is_sharded, parameters)):
        return whole
    keys = [key for group in whole["param_groups"] for key in group["params"]]
    owner = dict(zip(keys, parameters, strict=False))
    state = {
        key: {name: _scatter(value, owner[key]) for name, value in values.items()}
        for key, values in whole["state"].items()
    }
    return {**whole, "state": state}


def _scatter(whole: Any, own: Any) -> Any:
    if not is_sharded(own):
        return whole
    if whole is None:
        whole = torch.empty(own.shape, dtype=own.dtype)
    if not isinstance(whole, Tensor) or whole.shape != own.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.detach(), own.device_mesh, own.placements)
