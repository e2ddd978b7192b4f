"""Tensors that several processes hold in parts: the DTensors that FSDP2's `fully_shard` makes of a
model's parameters.

What passes between processes here is a fixed point that each of them must come to, in the same
order. A model that is not sharded is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer_callback import StateError
from trainer_callback.tensors import is_sharded, local_part

from ..config import ConfigError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

__all__ = [
    "check_offload",
    "check_optimizer_state",
    "check_sharding",
    "find_tensors",
    "fsdp_modules",
    "gather_state",
    "gather_weights",
    "holds_sharded",
    "reshard",
    "scatter_optimizer_state",
    "scatter_state",
    "share_copies",
    "whole_tensors",
]


def fsdp_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Yields the modules on which `fully_shard` was called, the outermost first."""
    package = sys.modules.get("torch.distributed.fsdp")
    if package is not None:
        yield from (each for each in model.modules() if isinstance(each, package.FSDPModule))


def check_offload(model: nn.Module) -> None:
    """Checks that parts of parameters lie where they are computed with.

    Raises:
        ConfigError: they are kept on the host, as with FSDP2's CPUOffloadPolicy.
    """
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) and not parameter.is_meta:
            own, mesh = local_part(parameter).device.type, parameter.device_mesh.device_type
            if own != mesh:
                raise ConfigError(
                    f"{name} lies on {own}, and its mesh is of {mesh} devices: "
                    "CPUOffloadPolicy is not supported. Call fully_shard without offload_policy."
                )


def check_sharding(model: nn.Module, world_size: int, device: torch.device) -> bool:
    """Returns whether `model` is sharded, as a whole and over all processes.

    Raises:
        ConfigError: a part of it is, or in another way than `fully_shard` does it by itself, or
            over other devices than `device`.
    """
    sharded = [name for name, parameter in model.named_parameters() if is_sharded(parameter)]
    if not sharded:
        return False
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = [name for name in trained if name not in {*sharded}]
    if whole:
        raise ConfigError(
            f"{whole[0]} is not sharded, and {sharded[0]} is: nobody would average its gradient. "
            "Call fully_shard on the model itself, after its parts."
        )
    found: Any = model.get_parameter(sharded[0])
    mesh, shards = found.device_mesh, [p for p in found.placements if p.is_shard()]
    if not any(fsdp_modules(model)) or len(shards) != 1 or mesh.size() != world_size:
        raise ConfigError(
            f"{sharded[0]} lies on a mesh of {mesh.size()} of {world_size} processes as "
            f"{found.placements}. Shard over all of them by fully_shard; tensor and pipeline "
            "parallelism are not supported, for each process gets batches of its own."
        )
    if mesh.device_type != device.type:
        raise ConfigError(
            f"the model is sharded over {mesh.device_type} devices, and the run's device is "
            f"{device.type}. Set device={mesh.device_type!r}, or shard it over a mesh of "
            f"{device.type} devices."
        )
    return True


def reshard(modules: Iterable[FSDPModule]) -> None:
    """Drops the whole copies of weights that a forward pass without a backward pass has left: the
    optimizer knows nothing of them, and the next forward pass would take them as they are.
    """
    for module in modules:
        module.reshard()


def whole_tensors(model: nn.Module) -> list[Tensor]:
    """Returns the parameters and buffers of `model` that are not sharded."""
    tensors = (*model.parameters(), *model.buffers())
    return [tensor for tensor in tensors if not is_sharded(tensor)]


def share_copies(model: nn.Module) -> None:
    """Makes copies of parts the same everywhere, on a mesh that has several."""
    for parameter in model.parameters():
        if is_sharded(parameter):
            for dimension, placement in enumerate(parameter.placements):
                if placement.is_replicate():
                    group = parameter.device_mesh.get_group(dimension)
                    torch.distributed.broadcast(local_part(parameter), group=group, group_src=0)


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
    missing = {
        name: torch.empty(value.shape, dtype=value.dtype) if is_sharded(value) else value
        for name, value in own.items()
        if name not in whole
    }
    source = {**missing, **whole}
    return {name: _scatter(source[name], value) for name, value in own.items()}


def scatter_optimizer_state(
    whole: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Mapping[str, Any]:
    """Returns the `whole` state of an optimizer with each tensor that belongs to a sharded
    parameter, and has its shape, divided as it is.
    """
    owners = _owners(whole, optimizer)
    if not any(map(is_sharded, owners.values())):
        return whole
    state = {key: _scatter(value, owners.get(key)) for key, value in whole["state"].items()}
    return {**whole, "state": state}


def check_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Checks that `scatter_optimizer_state` will be able to divide what `state` has sharded.

    Raises:
        StateError: a sharded tensor of the optimizer is not divided as its parameter is.
    """
    owners = _owners(state, optimizer)
    for key, value in state["state"].items():
        own = owners.get(key)
        for _, tensor in find_tensors(value):
            if is_sharded(tensor) and (own is None or tensor.shape != own.shape):
                raise StateError(
                    f"optimizer.state[{key!r}] of {type(optimizer).__name__} has a sharded tensor "
                    f"of shape {tuple(tensor.shape)} that is not divided as a parameter is. Such a "
                    "state cannot be saved; use another optimizer."
                )


def _owners(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Returns key in `state` -> parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]
    return dict(zip(keys, parameters, strict=False))


def find_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors in containers, each behind its place: the keys on the way to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from find_tensors(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from find_tensors(item, f"{path}[{index}]")


def holds_sharded(value: Any) -> bool:
    """Whether there is a DTensor in containers."""
    return any(is_sharded(tensor) for _, tensor in find_tensors(value))


def _scatter(whole: Any, own: Any) -> Any:
    if not is_sharded(own):
        return whole
    if isinstance(whole, Mapping):
        return {name: _scatter(item, own) for name, item in whole.items()}
    if type(whole) in (list, tuple):
        return type(whole)(_scatter(item, own) for item in whole)
    if not isinstance(whole, Tensor) or whole.shape != own.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.detach(), own.device_mesh, own.placements)
