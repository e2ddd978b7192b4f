"""Files <-> one durable directory. Knows writes, syncs and renames; knows no Trainer and imports no
torch.

A snapshot is a directory with `state.pt` (plain data and tensors, readable by
`torch.load(weights_only=True)` alone) and `manifest.json`, which holds the size and SHA-256 of
every other file and, in `digest`, its own. A directory without a sound manifest is no snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from trainer_callback import SnapshotError

from .manifest import FORMAT, MANIFEST, seal

__all__ = [
    "FileWriter",
    "list_snapshots",
    "make_directory",
    "remove_leftovers",
    "remove_snapshot",
    "save_bytes",
    "snapshot_name",
    "step_of",
    "write_snapshot",
]

FileWriter = Callable[[BinaryIO], None]
_TEMPORARY, _REPLACED = ".tmp-", ".old-"
_PIECE: Final = 1 << 20
"""Bytes that are hashed and written at a time: what the processor's cache still holds."""


def snapshot_name(step: int) -> str:
    """Returns the directory name of the snapshot of update `step`."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Returns the update of a snapshot from its directory's name; -1 where that tells none."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def save_bytes(content: bytes) -> FileWriter:
    """Returns the writer of a file with `content`."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def write_snapshot(
    target: Path,
    files: Mapping[str, FileWriter],
    facts: Mapping[str, Any],
    beside: Sequence[Path] = (),
) -> str:
    """Writes `files` and a manifest with `facts` as the directory `target`, wholly or not at all.

    Written to a temporary directory beside it, each file synced, the manifest last, then renamed,
    then the parent synced. A directory that has the name already is put aside first and removed
    after.

    Args:
        beside: files that the snapshot refers to, synced before it gets its name.

    Returns:
        The manifest's digest, which stands for every byte of the snapshot.

    Raises:
        SnapshotError: it could not be written; names path, bytes needed and cause. The temporary
            directory is gone.
    """
    temporary = target.with_name(_TEMPORARY + target.name)
    try:
        make_directory(temporary.parent)
        _remove(temporary)
        temporary.mkdir()
        entries = {name: _write_file(temporary / name, write) for name, write in files.items()}
        manifest = seal({"format": FORMAT, **facts, "files": entries})
        _write_file(temporary / MANIFEST, save_bytes(manifest))
        _sync(temporary)
        for path in beside:
            with contextlib.suppress(FileNotFoundError):
                _sync(path)
        _put_in_place(temporary, target)
    except Exception as error:  # torch.save reports a full disk as RuntimeError
        _remove(temporary)
        raise SnapshotError(_explain(target, files, error)) from error
    return str(json.loads(manifest)["digest"])


def list_snapshots(directory: Path) -> list[Path]:
    """Returns the finished snapshot directories in `directory`, newest step first; their content is
    not looked at.

    Raises:
        SnapshotError: there may be some, and nobody can tell.
    """
    found = [each for each in _content(directory) if step_of(each) >= 0 and each.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def remove_snapshot(path: Path) -> None:
    """Removes a snapshot; one whose removal is cut short is a leftover, not a broken snapshot."""
    doomed = path.with_name(f"{_TEMPORARY}gone-{path.name}")
    with contextlib.suppress(OSError):
        _remove(doomed)
        path.rename(doomed)
        _remove(doomed)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed write left in `directory`, and puts back what it had only put aside."""
    for path in _content(directory):
        if path.name.startswith(_TEMPORARY):
            _remove(path)
        elif path.name.startswith(_REPLACED):
            target = path.with_name(path.name.removeprefix(_REPLACED))
            if target.exists():
                _remove(path)
            else:
                path.rename(target)


def make_directory(path: Path) -> None:
    """Makes `path` and its parents, each of them durable in its own parent."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


class _HashedFile:
    """A binary file that hashes and counts what is written through it, and remembers the error that
    the system gave: torch reports another.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self.sha256.update(piece)
            try:
                self._file.write(piece)
            except OSError as error:
                self.error = error
                raise
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def _write_file(path: Path, write: FileWriter) -> dict[str, Any]:
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        try:
            write(hashed)  # type: ignore[arg-type]
        except Exception:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"size": hashed.size, "sha256": hashed.sha256.hexdigest()}


def _put_in_place(temporary: Path, target: Path) -> None:
    aside = target.with_name(_REPLACED + target.name)
    replaces = target.exists()
    if replaces:
        _remove(aside)
        target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        if replaces:
            aside.rename(target)
        raise
    _sync(target.parent)
    _remove(aside)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(target: Path, files: Mapping[str, FileWriter], error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return f"the snapshot {target} could not be written: {error}"
    text = f"the snapshot {target} could not be written: {os.strerror(error.errno)}."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text
    with contextlib.suppress(Exception):  # the same error again, in the worst case
        needed = sum(_measure(write) for write in files.values())
        free = shutil.disk_usage(target.parent).free
        text += f" It needs {needed:,} bytes, and {free:,} are free there."
    return f"{text} Free some space."


def _measure(write: FileWriter) -> int:
    """Returns the bytes that `write` would write."""

    class Counter:
        size = 0

        def write(self, data: Any) -> int:
            count = memoryview(data).nbytes
            self.size += count
            return count

        def flush(self) -> None: ...

    counter = Counter()
    write(counter)  # type: ignore[arg-type]
    return counter.size
