"""The random number generators that a run draws from: Python, numpy, torch on the CPU and on its
device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

import numpy
import torch

__all__ = ["RandomStream", "read_rng", "restore_rng", "seed_rng"]

_CPU: Final = torch.device("cpu")


def seed_rng(seed: int) -> None:
    """Seeds every generator with `seed`."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def read_rng(device: torch.device) -> dict[str, Any]:
    """Returns the state of every generator as plain data and uint8 tensors on the CPU."""
    legacy: Any = numpy.random.get_state()
    _, keys, position, has_gauss, gauss = legacy
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.copy()), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts every generator where `read_rng` found it; one that the state has not is left alone."""
    random.setstate(state["python"])
    keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


class RandomStream:
    """Random numbers of their own for a piece of code that draws from the global generators: inside
    `with stream:` these stand where the last `with` left them, outside they know nothing of it.
    """

    def __init__(self, seed: int) -> None:
        """Starts at `seed`, on the CPU; a device's generators are not touched."""
        outside = read_rng(_CPU)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        self.state: dict[str, Any] = read_rng(_CPU)
        restore_rng(outside, _CPU)
        self._outside = outside

    def __enter__(self) -> None:
        self._outside = read_rng(_CPU)
        restore_rng(self.state, _CPU)

    def __exit__(self, *_: object) -> None:
        self.state = read_rng(_CPU)
        restore_rng(self._outside, _CPU)
