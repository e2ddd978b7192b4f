"""`state.pt`: plain data and tensors <-> a file that torch.load with weights_only=True reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from trainer_callback import SnapshotError

from .manifest import FORMAT, verify
from .snapshot import FileWriter

__all__ = ["STATE", "load_state", "save_state"]

STATE: Final = "state.pt"

_MIGRATIONS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
"""Format -> what makes a state of it one of the next format."""


def save_state(state: Mapping[str, Any]) -> FileWriter:
    """Returns the writer of `state.pt`.

    Through a Python file: torch hands it the tensors' own memory piece by piece. Given a path, it
    would keep the interpreter lock while it writes (60 ms for 150 MB, torch 2.13).
    """
    return lambda file: torch.save(state, file)


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `(state, manifest)` of a snapshot after checking every byte. Tensors are on the CPU,
    mapped from the file; a state of an older format is migrated.

    Raises:
        SnapshotError: anything is wrong with it. No code of the file is ever run.
    """
    manifest, file = verify(path), path / STATE
    if STATE not in manifest["files"]:
        raise SnapshotError(f"{path} has no {STATE}, so there is nothing to load.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch have each their own
        raise SnapshotError(
            f"{file} cannot be read: it is no file of plain data and tensors "
            f"({_reason(error)}). Nothing in it was run."
        ) from error
    if not isinstance(state, dict):
        raise SnapshotError(f"{file} holds a {type(state).__name__} instead of a dictionary.")
    for version in range(manifest["format"], FORMAT):
        state = _MIGRATIONS[version](state)
    return state, manifest


def _reason(error: Exception) -> str:
    """Returns what torch found, without its advice to load the file unsafely."""
    found = re.search(r"(GLOBAL \S+)", str(error))
    return found[1] if found else type(error).__name__
