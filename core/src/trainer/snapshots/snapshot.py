"""Files <-> one durable directory. Knows writes, syncs and renames; knows no Trainer and imports no
torch.

A snapshot is a directory with `state.pt` (plain data and tensors, readable by
`torch.load(weights_only=True)` alone) and `manifest.json`, which holds the size and a digest of
every other file and, in `digest`, its own. A directory without a sound manifest is no snapshot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import SnapshotError

from .durable import (
    TEMPORARY,
    FileWriter,
    explain,
    make_directory,
    save_bytes,
    sync,
    sync_directory,
    write_file,
)
from .manifest import FORMAT, MANIFEST, own_file_names, read_manifest, seal

__all__ = [
    "find_foreign",
    "list_snapshots",
    "remove_leftovers",
    "remove_snapshot",
    "snapshot_name",
    "step_of",
    "write_snapshot",
]

logger: logging.Logger = logging.getLogger("trainer")

_REPLACED: Final = ".old-"
"""Start of the name of what is put aside while something takes its place."""

_OWN: Final = (MANIFEST, "state.pt")
"""What a directory of the name of a snapshot holds, whatever its manifest says."""


def snapshot_name(step: int) -> str:
    """Returns the directory name of the snapshot of update `step`."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Returns the update of a snapshot from its directory's name; -1 where there is none in it."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def write_snapshot(
    target: Path,
    files: Mapping[str, FileWriter],
    facts: Mapping[str, Any],
    beside: Sequence[Path] = (),
    check: Callable[[Path, Mapping[str, Any]], object] = lambda path, manifest: None,
) -> str:
    """Writes `files` and a manifest with `facts` as the directory `target`, wholly or not at all.

    Written to a temporary directory beside it, each file synced, the manifest last, checked, then
    renamed, then the parent synced. A directory that has the name already is put aside first and
    removed after; what somebody else has put there moves into the new one.

    Args:
        beside: files that the snapshot refers to, synced before it gets its name.
        check: called with the temporary directory and its manifest; what it raises is the reason
            why the snapshot could not be written.

    Returns:
        The manifest's digest, which stands for every byte of the snapshot.

    Raises:
        SnapshotError: it could not be written; names path, bytes needed and cause. The temporary
            directory is gone.
    """
    temporary = target.with_name(TEMPORARY + target.name)
    try:
        _check_target(target)
        make_directory(temporary.parent)
        _remove(temporary)
        temporary.mkdir()
        entries = {name: write_file(temporary / name, write) for name, write in files.items()}
        sealed = seal({"format": FORMAT, **facts, "files": entries})
        write_file(temporary / MANIFEST, save_bytes(sealed))
        sync_directory(temporary)
        manifest = read_manifest(temporary)
        check(temporary, manifest)
        for path in beside:
            with contextlib.suppress(FileNotFoundError):
                sync(path)
        _put_in_place(temporary, target)
    except Exception as error:  # torch.save reports a full disk as RuntimeError
        _remove(temporary)
        text = explain(target, files, error).replace(str(temporary), str(target))
        raise SnapshotError(text) from error
    return str(manifest["digest"])


def list_snapshots(directory: Path) -> list[Path]:
    """Returns what has the name of a snapshot in `directory`, newest step first; whether it is one
    is not looked at.

    Raises:
        SnapshotError: there may be some, and nobody can tell.
    """
    found = [each for each in _content(directory) if step_of(each) >= 0]
    return sorted(found, key=step_of, reverse=True)


def find_foreign(path: Path) -> list[str]:
    """Returns the names in the directory `path` that are not a snapshot's own: its manifest does
    not name them. Without a manifest that can be read, that is all of them; in a directory of the
    name of a snapshot, all but the two files that each has.

    Raises:
        OSError: it cannot be read.
    """
    is_snapshot = step_of(path.with_name(path.name.removeprefix(_REPLACED))) >= 0
    own = {*(own_file_names(path) or ()), *(_OWN if is_snapshot else ())}
    return sorted(each.name for each in path.iterdir() if each.name not in own)


def remove_snapshot(path: Path) -> None:
    """Removes a snapshot; one whose removal is cut short is a leftover, not a broken snapshot. What
    is not its own stays, and so does a file of such a name.
    """
    doomed = path.with_name(f"{TEMPORARY}gone-{path.name}")
    with contextlib.suppress(OSError):
        if path.is_symlink():
            path.unlink()
            return
        foreign = find_foreign(path)
        if foreign:
            _remove_own(path, foreign)
            return
        _remove(doomed)
        path.rename(doomed)
        _remove(doomed)


def remove_leftovers(directory: Path, names: Collection[str] | None = None) -> None:
    """Removes what a killed write left in `directory`, and puts back what it had only put aside.

    Args:
        names: what is written there, if others may have files there too.
    """
    for path in _content(directory):
        start, name = path.name[: len(TEMPORARY)], path.name[len(TEMPORARY) :]
        if start not in (TEMPORARY, _REPLACED) or (names is not None and name not in names):
            continue
        target = path.with_name(name)
        if start == TEMPORARY:
            _remove(path)
        elif target.exists():
            _remove_replaced(path, target)
        else:
            path.rename(target)


def _check_target(target: Path) -> None:
    """Refuses to replace what no snapshot is."""
    if not os.path.lexists(target) or (target.is_dir() and step_of(target) >= 0):
        return
    foreign = find_foreign(target) if target.is_dir() else [""]
    if foreign and own_file_names(target) is None:
        raise SnapshotError(f"{target / foreign[0]} is there, which no run wrote. Move it.")


def _put_in_place(temporary: Path, target: Path) -> None:
    aside = target.with_name(_REPLACED + target.name)
    replaces = target.exists()
    if replaces:
        _remove_replaced(aside, target)
        target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        if replaces:
            aside.rename(target)
        raise
    sync_directory(target.parent)
    _remove_replaced(aside, target)


def _remove_replaced(aside: Path, target: Path) -> None:
    """Removes what `target` has replaced; what is not a snapshot's own moves there."""
    with contextlib.suppress(OSError):
        new = (own_file_names(target) or set()) if step_of(target) >= 0 else set()
        for name in {*find_foreign(aside)} - new:
            heir = target / name
            while os.path.lexists(heir):
                heir = heir.with_name(f"{heir.name}~")
            (aside / name).rename(heir)
        _remove(aside)


def _remove_own(path: Path, foreign: Collection[str]) -> None:
    """Removes a snapshot's own files from a directory that others use too, the manifest last: as
    long as it is there, it says what is whose.
    """
    own = [each for each in path.iterdir() if each.name not in foreign]
    for each in sorted(own, key=lambda each: each.name == MANIFEST):
        _remove(each)
    if own:
        logger.info("%s stays: no run wrote it.", path / sorted(foreign)[0])


def _content(directory: Path) -> list[Path]:
    """Returns what is in `directory`; nothing where it is none."""
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SnapshotError(
            f"{directory} cannot be listed, so nobody can tell what snapshots there are: "
            f"{error.strerror}. Make it readable."
        ) from error


def _remove(path: Path) -> None:
    """Removes a directory, or whatever else has its name; what a link leads to stays."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
