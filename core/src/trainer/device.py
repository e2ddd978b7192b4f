"""Names of devices -> devices that are there; and how many processes may share a run: one."""

from __future__ import annotations

import os

import torch

from .config import ConfigError

__all__ = ["check_ranks", "find_device", "has_bf16"]


def find_device(name: str) -> torch.device:
    """Returns the device `name`: `auto` (CUDA, then MPS, then the CPU), `cpu`, `cuda`, `cuda:N` or
    `mps`.

    Raises:
        ConfigError: there is no such device; the message lists those that there are.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        return torch.device(next((n for n in ("cuda", "mps") if n in available), "cpu"))
    if name not in available:
        raise ConfigError(
            f"there is no device {name!r}. This machine has {', '.join(available)}; `auto` takes "
            "the best."
        )
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 faster than float32: CUDA from Ampere on, and CPUs with
    AMX, where the product of two matrices takes a quarter of the time.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in every torch
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return False


def check_ranks() -> None:
    """Refuses to be one of several processes, as `torchrun` starts them.

    Raises:
        ConfigError: `WORLD_SIZE` is above 1. Each process would train a model of its own.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count.isdecimal() and int(count) > 1:
        raise ConfigError(
            f"this is one of {count} processes (WORLD_SIZE={count}), and a run has one: each would "
            "train a model of its own. Start it without torchrun, or with --nproc-per-node 1."
        )
