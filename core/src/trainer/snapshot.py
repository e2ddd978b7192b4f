"""dict <-> durable directory. Knows files, digests and renames; knows no Trainer.

A snapshot is a directory with `state.pt` (plain data and tensors, readable by
`torch.load(weights_only=True)` alone) and
`manifest.json`, which holds the size and SHA-256 of every other file and, in `digest`, its own. A
directory without a sound manifest
is no snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from trainer_callback import SnapshotError

__all__ = [
    "FORMAT",
    "FileWriter",
    "list_snapshots",
    "load_state",
    "read_manifest",
    "remove_leftovers",
    "save_bytes",
    "save_state",
    "snapshot_name",
    "verify",
    "write_snapshot",
]

FORMAT: Final = 1
"""Version of the directory's format; a newer one is refused, an older one migrated in memory."""

FileWriter = Callable[[BinaryIO], None]
_MANIFEST: Final = "manifest.json"
_STATE: Final = "state.pt"
_TEMPORARY, _REPLACED = ".tmp-", ".old-"


def snapshot_name(step: int) -> str:
    """Returns the directory name of the snapshot of update `step`."""
    return f"step-{step:08d}"


def save_state(state: Mapping[str, Any]) -> FileWriter:
    """Returns the writer of `state.pt`."""
    return lambda file: torch.save(state, file)


def save_bytes(content: bytes) -> FileWriter:
    """Returns the writer of a file with `content`."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def write_snapshot(target: Path, files: Mapping[str, FileWriter], facts: Mapping[str, Any]) -> str:
    """Writes `files` and a manifest with `facts` as the directory `target`, wholly or not at all.

    Written to a temporary directory beside it, each file synced, the manifest last, then renamed,
    then the parent synced. A
    directory that has the name already is put aside first and removed after.

    Returns:
        The manifest's digest, which stands for every byte of the snapshot.

    Raises:
        SnapshotError: it could not be written; names path, bytes needed so far and cause. The
            temporary directory is gone.
    """
    temporary = target.with_name(_TEMPORARY + target.name)
    written = 0
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        entries = {}
        for name, write in files.items():
            entries[name] = _write_file(temporary / name, write)
            written += entries[name]["size"]
        manifest = _seal({"format": FORMAT, **facts, "files": entries})
        _write_file(temporary / _MANIFEST, save_bytes(manifest))
        _sync_directory(temporary)
        _put_in_place(temporary, target)
    except Exception as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        raise SnapshotError(_explain(target, written, error)) from error
    return str(json.loads(manifest)["digest"])


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of the snapshot `path`, whose own digest is checked; no other file is
    read.

    Raises:
        SnapshotError: missing, damaged, or of a newer format.
    """
    file = path / _MANIFEST
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{file}: {error.strerror}. This is no complete snapshot.") from error
    try:
        manifest: dict[str, Any] = json.loads(content)
        sound = isinstance(manifest, dict) and _seal(manifest) == content
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise SnapshotError(f"{file} is damaged: its content does not match its own digest.")
    if manifest["format"] > FORMAT:
        raise SnapshotError(
            f"{path} has format {manifest['format']}, and this trainer reads up to format "
            f"{FORMAT}. "
            "Install a newer trainer-core."
        )
    return manifest


def verify(path: Path) -> dict[str, Any]:
    """Returns the manifest after checking size and SHA-256 of every file against it.

    Raises:
        SnapshotError: names the first file that is missing, cut or changed.
    """
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            size = file.stat().st_size
            digest = _digest_file(file) if size == entry["size"] else ""
        except OSError as error:
            raise SnapshotError(f"{file}: {error.strerror}.") from error
        if size != entry["size"]:
            raise SnapshotError(
                f"{file} has {size} bytes instead of {entry['size']}: it was cut or replaced."
            )
        if digest != entry["sha256"]:
            raise SnapshotError(f"{file} is damaged: its SHA-256 is not the one in the manifest.")
    return manifest


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `(state, manifest)` of a snapshot after checking every byte. Tensors are on the CPU,
    mapped from the file.

    Raises:
        SnapshotError: anything is wrong with it. No code of the file is ever run.
    """
    manifest = verify(path)
    try:
        state = torch.load(path / _STATE, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch have each their own
        raise SnapshotError(f"{path / _STATE} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise SnapshotError(
            f"{path / _STATE} holds a {type(state).__name__} instead of a dictionary."
        )
    return state, manifest


def list_snapshots(directory: Path) -> list[Path]:
    """Returns the finished snapshot directories in `directory`, newest step first; their content is
    not looked at.
    """
    with contextlib.suppress(OSError):
        names = [each for each in directory.iterdir() if each.name.startswith("step-")]
        return sorted((each for each in names if each.is_dir()), key=_step_of, reverse=True)
    return []


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed write left in `directory`, and puts back what it had only put aside."""
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.name.startswith(_TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(_REPLACED):
                target = path.with_name(path.name.removeprefix(_REPLACED))
                if target.exists():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.rename(target)


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """Returns the manifest's bytes, in one canonical form, with the digest of all the rest in
    `digest`.
    """
    body = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(body, indent=1, sort_keys=True, allow_nan=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**body, "digest": digest}, indent=1, sort_keys=True) + "\n").encode()


class _DigestFile:
    """A binary file that hashes and counts what is written through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._file.write(data)
        count = memoryview(data).nbytes
        self.size += count
        return count

    def flush(self) -> None:
        self._file.flush()


def _write_file(path: Path, write: FileWriter) -> dict[str, Any]:
    with path.open("wb") as file:
        hashed = _DigestFile(file)
        write(hashed)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    return {"size": hashed.size, "sha256": hashed.sha256.hexdigest()}


def _put_in_place(temporary: Path, target: Path) -> None:
    aside = target.with_name(_REPLACED + target.name)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    temporary.rename(target)
    _sync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def _explain(target: Path, written: int, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.errno is not None:
        why = os.strerror(cause.errno)
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = " Free some space." if full else ""
    else:
        why, advice = str(error), ""
    return f"the snapshot {target} could not be written: {why} (after {written} bytes of finished files).{advice}"
