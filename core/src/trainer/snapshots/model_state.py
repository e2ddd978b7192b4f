"""A model's weights and buffers: whether saved ones fit it, and loading them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_callback import SnapshotError

from ..processes.sharding import scatter_state

__all__ = ["check_model_state", "describe_form", "is_expanded", "load_model_state", "same_bits"]


def check_model_state(
    model: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any], path: Path
) -> None:
    """Checks that names and shapes of `state` are those of `own`, the `state_dict` of `model`,
    and that names of one tensor have one value.

    Raises:
        SnapshotError: they are not; the first layer that does not fit is named.
    """
    free = _find_resizing(model)
    for name, tensor in own.items():
        if name not in state:
            raise SnapshotError(
                f"{path} has no {name!r}, which the model has. Is it another model?"
            )
        is_free = name.rpartition(".")[0] in free and isinstance(state[name], torch.Tensor)
        if (
            isinstance(tensor, torch.Tensor)
            and not is_free
            and describe_form(tensor) != describe_form(state[name])
        ):
            raise SnapshotError(
                f"{name!r} is {describe_form(tensor)} in the model and "
                f"{describe_form(state[name])} in {path}. Build the model with the sizes it was "
                "trained with."
            )
    surplus = [name for name in state if name not in own]
    if surplus:
        raise SnapshotError(
            f"{path} has {surplus[0]!r}, which the model has not. Is it another model?"
        )
    _check_tied(model, state, path)


def load_model_state(
    model: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any], path: Path | str
) -> None:
    """Loads `state`, divided as `own` is, in place: the tied stay tied.

    Raises:
        SnapshotError: a module does not take it.
    """
    divided = scatter_state(state, own)
    try:
        model.load_state_dict(divided)
    except Exception as error:  # a module may load its own state in a way of its own
        text = " ".join(str(error).split()).rstrip(".")
        raise SnapshotError(
            f"{path} does not fit the model: {text}. Build the model with the sizes it was trained "
            "with."
        ) from error


def _find_resizing(model: nn.Module) -> set[str]:
    """Returns the names of modules whose own loading may change shapes; torch's layers never do."""
    return {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if not type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
    }


def _check_tied(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Refuses two values for one tensor: the later would silently be that of both names."""
    first: dict[int, str] = {}
    named = (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in chain(*named):
        other = first.setdefault(id(tensor), name)
        if other == name or other not in state or name not in state:
            continue
        if not _is_same(state[other], state[name]):
            raise SnapshotError(
                f"{other!r} and {name!r} are one tensor in the model, and have different values in "
                f"{path}: one of them would be lost. Build the model as the run that wrote it did, "
                "with both apart."
            )


def _is_same(one: Any, other: Any) -> bool:
    """Whether two saved values are the same, bit by bit."""
    if not all(isinstance(each, torch.Tensor) for each in (one, other)):
        return True  # a form that the module itself reads
    if one.layout != other.layout:
        return False
    return same_bits(one, other) if one.layout == torch.strided else torch.equal(one, other)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [each.detach().reshape(-1).contiguous().view(torch.uint8) for each in (one, other)]
    return torch.equal(*bits)


def describe_form(value: object) -> str:
    """Returns shape and dtype of a tensor, or what else it is."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:  # which has no shape
        return "a nested tensor"
    return f"of shape {tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})"


def is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements of `tensor` are one place in memory."""
    if tensor.layout != torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)
