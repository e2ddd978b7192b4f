"""`final/model.safetensors`: the finished weights in the form that other programs read."""

from __future__ import annotations

from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import nn

from .snapshot import FileWriter

__all__ = ["save_safetensors"]


def save_safetensors(model: nn.Module) -> FileWriter:
    """Returns the writer of `model`'s weights and buffers; of tied ones the first name is kept, and
    the others are listed in the metadata.
    """

    def write(file: BinaryIO) -> None:
        file.write(_as_safetensors(model))

    return write


def _as_safetensors(model: nn.Module) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return save(tensors, {**tied, "format": "pt"})
