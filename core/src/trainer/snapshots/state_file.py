"""`state.pt`: plain data and tensors <-> a file that torch.load with weights_only=True reads.

There is one reader. What a resume loads, what is about to become a snapshot, and what
`trainer snapshot verify` looks at, all pass through it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from trainer_callback import SnapshotError

from .durable import FileWriter
from .manifest import FORMAT, verify
from .snapshot import snapshot_name, step_of
from .state_form import describe_fault

__all__ = ["STATE", "load_resumable", "load_state", "read_state", "save_state"]

STATE: Final = "state.pt"

_MIGRATIONS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    1: lambda state: state  # format 2 has other digests
}
"""Format -> what makes a state of it one of the next format."""


def save_state(state: Mapping[str, Any], *, with_crc: bool = False) -> FileWriter:
    """Returns the writer of `state.pt`.

    Through a Python file: torch hands it the tensors' own memory piece by piece. Given a path, it
    would keep the interpreter lock while it writes (60 ms for 150 MB, torch 2.13).

    Args:
        with_crc: with the checksums of a zip file. torch computes them at 2.5 GB/s, which is half
            of the time of a write, and never looks at them; the manifest has a better one. Other
            readers of zip files refuse a file without.
    """

    def write(file: BinaryIO) -> None:
        before = get_crc32_options()
        set_crc32_options(before and with_crc)  # in this thread
        try:
            torch.save(state, file)
        finally:
            set_crc32_options(before)

    return write


def load_resumable(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what `load_state` does, of a snapshot that a run can go on from.

    Raises:
        SnapshotError: as there; or it holds weights only; or its directory has the name of another
            update, so that it would be taken for a newer or an older one.
    """
    state, manifest = load_state(path)
    if "optimizer" not in state:
        raise SnapshotError(
            f"{path} holds a finished model, which cannot be resumed. Name a directory of "
            "snapshots/."
        )
    step = state["progress"]["step"]
    if step_of(path) not in (-1, step):
        raise SnapshotError(
            f"{path} is the snapshot of update {step}, under another one's name. Call it "
            f"{snapshot_name(step)}."
        )
    return state, manifest


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `(state, manifest)` of a snapshot after checking every byte and what it holds.
    Tensors are on the CPU, mapped from the file; a state of an older format is migrated.

    Raises:
        SnapshotError: anything is wrong with it. No code of the file is ever run.
    """
    manifest = verify(path)
    if STATE not in manifest["files"]:
        raise SnapshotError(f"{path} has no {STATE}, so there is nothing to load.")
    return read_state(path, manifest), manifest


def read_state(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of the snapshot `path`, whose bytes are those of `manifest`.

    Raises:
        SnapshotError: it is no plain data, or a run could not go on from it.
    """
    file = path / STATE
    try:
        state: Any = _load(file)
    except Exception as error:  # pickle, zip and torch have each their own
        raise SnapshotError(
            f"{file} cannot be read: it is no file of plain data and tensors "
            f"({_reason(error)}). Nothing in it was run."
        ) from error
    if not isinstance(state, dict):
        raise SnapshotError(f"{file} holds a {type(state).__name__} instead of a dictionary.")
    for version in range(manifest["format"], FORMAT):
        state = _MIGRATIONS[version](state)
    loaded: dict[str, Any] = state
    fault = describe_fault(loaded, manifest) if "optimizer" in state else None
    if fault is not None:
        raise SnapshotError(f"{path} is no snapshot of such a run: {fault}.")
    return loaded


def _load(file: Path) -> Any:
    with contextlib.ExitStack() as held:
        source: str | IO[bytes] = str(file)
        try:
            str(file).encode()
        except UnicodeEncodeError:  # a name of other bytes, which torch cannot open by itself
            source = held.enter_context(file.open("rb"))
        mapped = isinstance(source, str)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _reason(error: Exception) -> str:
    """Returns what torch found, without its advice to load the file unsafely."""
    found = re.search(r"(GLOBAL \S+)", str(error))
    return found[1] if found else type(error).__name__
