"""`final/model.safetensors`: the finished weights in the form that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from .durable import FileWriter

__all__ = ["describe_unsaveable", "save_safetensors"]


def describe_unsaveable(weights: Mapping[str, Any]) -> str | None:
    """Returns which tensor of a model's weights and buffers the format cannot hold, or None. What
    is no tensor is left out of it anyway.
    """
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        kind = str(tensor.layout if tensor.layout != torch.strided else tensor.dtype)
        try:
            if tensor.layout == torch.strided:
                save({name: torch.empty(0, dtype=tensor.dtype)})
                continue
        except (KeyError, RuntimeError, TypeError, ValueError):
            pass
        return f"safetensors cannot hold {name!r}, which is {kind.removeprefix('torch.')}"
    return None


def save_safetensors(weights: Mapping[str, Any]) -> FileWriter:
    """Returns the writer of a model's weights and buffers; of tied ones the first name is kept, and
    the others are listed in the metadata.
    """
    return lambda file: file.write(_as_safetensors(weights))


def _as_safetensors(weights: Mapping[str, Any]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return save(tensors, {**tied, "format": "pt"})
