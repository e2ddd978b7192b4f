"""`final/model.safetensors`: the finished weights in the form that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from safetensors.torch import save

from .snapshot import FileWriter

__all__ = ["save_safetensors"]


def save_safetensors(weights: Mapping[str, Any]) -> FileWriter:
    """Returns the writer of a model's weights and buffers; of tied ones the first name is kept, and
    the others are listed in the metadata.
    """

    def write(file: BinaryIO) -> None:
        file.write(_as_safetensors(weights))

    return write


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
