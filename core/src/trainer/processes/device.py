"""Names of devices -> devices that are there."""

from __future__ import annotations

import logging
import os
from typing import Final

import torch

from trainer_callback import option_text

from ..config import ConfigError

__all__ = ["choose_precision", "find_device"]

logger: logging.Logger = logging.getLogger("trainer")

_told: Final[list[torch.device]] = []
"""Devices of which this process has said that they could be faster."""


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
    float32, else fp32. Says once where a card could be faster than fp32.

    That is CUDA from Ampere on, and CPUs with AMX, where the product of two matrices takes a
    quarter of the time.

    Raises:
        ConfigError: `device` has no tf32.
    """
    if name == "tf32":
        _check_tf32(device)
    if name == "fp32":
        _tell_of_faster(device)
    if name != "auto":
        return name
    return "bf16" if _is_fast(device) else "fp32"


def _is_fast(device: torch.device) -> bool:
    fast = False
    if device.type == "cuda":
        fast = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in every torch
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return fast


def _check_tf32(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"precision is 'tf32', which CUDA cards have from Ampere on, and {device} has not. Use "
            f"{option_text('precision', 'fp32')}, or {option_text('precision', 'auto')}."
        )


def _tell_of_faster(device: torch.device) -> None:
    """Says once, on a card with tensor cores for it, what fp32 leaves lying."""
    is_card = device.type == "cuda" and _is_fast(device)
    if not is_card or _told or torch.get_float32_matmul_precision() != "highest":
        return
    _told.append(device)
    logger.info(
        "precision is fp32: %s multiplies matrices several times as fast with %s (the same range, "
        "fewer digits) or %s.",
        torch.cuda.get_device_name(device),
        option_text("precision", "tf32"),
        option_text("precision", "bf16"),
    )
