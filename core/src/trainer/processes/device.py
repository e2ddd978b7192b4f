"""Names of devices -> devices that are there."""

from __future__ import annotations

import os

import torch

from ..config import ConfigError

__all__ = ["choose_precision", "find_device"]


def find_device(name: str) -> torch.device:
    """Returns the device `name`: `auto` (CUDA, then MPS, then the CPU), `cpu`, `cuda`, `cuda:N` or
    `mps`. Where `torchrun` started several processes, `auto` and `cuda` are a card for each.

    Raises:
        ConfigError: there is no such device; the message lists those that there are.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        name = next((n for n in ("cuda", "mps") if n in available), "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name not in available:
        raise ConfigError(
            f"there is no device {name!r}. This machine has {', '.join(available)}; `auto` takes "
            "the best."
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Returns the precision `name`; for `auto` bf16 where `device` multiplies it faster than
    float32, else fp32.

    That is CUDA from Ampere on, and CPUs with AMX, where the product of two matrices takes a
    quarter of the time.
    """
    if name != "auto":
        return name
    fast = False
    if device.type == "cuda":
        fast = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in every torch
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return "bf16" if fast else "fp32"
