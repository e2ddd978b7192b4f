"""`final/model.safetensors`: the finished weights in the form that other programs read."""

from __future__ import annotations

import torch
from safetensors.torch import save
from torch import nn

from .snapshot import FileWriter, save_bytes

__all__ = ["save_safetensors"]


def save_safetensors(model: nn.Module) -> FileWriter:
    """Returns the writer of `model`'s weights and buffers; of tied ones the first name is kept, and
    the others are listed in the metadata.
    """
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()

    return save_bytes(save(tensors, {"format": "pt", **tied}))
