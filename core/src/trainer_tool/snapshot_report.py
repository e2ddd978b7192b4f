"""What snapshots hold and whether they are sound, for `trainer snapshot`. To show them it reads
manifests only, and torch is not imported; to check them it reads them as a resume does.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.snapshots.manifest import MANIFEST, read_manifest
from trainer.snapshots.rundir import RunDirectory
from trainer.snapshots.snapshot import list_snapshots, remove_leftovers, remove_snapshot, step_of
from trainer_callback import SnapshotError, UsageError

__all__ = ["Report", "find_snapshots", "prune", "report"]


@dataclass(frozen=True)
class Report:
    """One snapshot.

    Attributes:
        path: its directory.
        problem: why it is not sound, or None.
        checked: it was read as a resume reads it, every byte; else the manifest alone was read.
        size: bytes of all its files.
        manifest: what it says of itself; empty where that cannot be trusted.
    """

    path: str
    problem: str | None
    checked: bool
    size: int
    manifest: dict[str, Any]


def find_snapshots(path: Path) -> list[Path]:
    """Returns `path` itself if it is a snapshot, else those of the run in `path`: the newest first,
    then the finished model and the kept weights.

    Raises:
        UsageError: there is none.
    """
    if (path / MANIFEST).exists():
        return [path]
    others = [path / "final", *sorted((path / "weights").glob("*"))]
    found = [*list_snapshots(path), *list_snapshots(path / "snapshots")]
    found += [each for each in others if (each / MANIFEST).exists()]
    if not found:
        raise UsageError(f"there is no snapshot in {str(path)!r}. Name a run's output directory.")
    return found


def report(path: Path, *, check: bool) -> Report:
    """Returns what the snapshot `path` holds.

    Args:
        check: read it as a resume does, every byte.
    """
    try:
        manifest = _check(path) if check else read_manifest(path)
    except SnapshotError as error:
        return Report(str(path), str(error), check, _size(path), {})
    return Report(str(path), None, check, _size(path), manifest)


def _check(path: Path) -> dict[str, Any]:
    from trainer.snapshots.state_file import load_resumable, load_state  # which import torch

    _, manifest = load_resumable(path) if step_of(path) >= 0 else load_state(path)
    return manifest


def prune(path: Path, keep: int) -> list[Path]:
    """Removes all but the `keep` newest sound snapshots of the run in `path`, and leftovers.

    Returns what was removed. The finished model and kept weights stay.

    Raises:
        UsageError: it is no run, a run uses it, or none of its snapshots is sound.
    """
    directory = path / "snapshots"
    if not directory.is_dir():
        raise UsageError(f"there is no snapshot in {str(path)!r}. Name a run's output directory.")
    with RunDirectory(path):
        known = list_snapshots(directory)
        sound = [each for each in known if report(each, check=True).problem is None]
        if known and not sound:
            raise UsageError(f"none of the {len(known)} snapshots in {str(path)!r} is sound.")
        superfluous = [each for each in known if each not in sound[:keep]]
        for each in superfluous:
            remove_snapshot(each)
        remove_leftovers(directory)
    return [each for each in superfluous if not os.path.lexists(each)]


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(each.stat().st_size for each in path.iterdir())
    return 0
