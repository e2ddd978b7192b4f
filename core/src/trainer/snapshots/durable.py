"""Files that last: synced before they count, whole or not there. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from trainer_callback.digests import DIGESTS, KIND

__all__ = [
    "TEMPORARY",
    "FileWriter",
    "explain",
    "has_name",
    "make_directory",
    "replace_file",
    "save_bytes",
    "sync",
    "sync_directory",
    "write_file",
]

logger: logging.Logger = logging.getLogger("trainer")

FileWriter = Callable[[BinaryIO], object]
TEMPORARY: Final = ".tmp-"
"""Start of the name of what is being written."""

_CHUNK_BYTES: Final = 1 << 20
"""Bytes that are copied and hashed at a time: what the processor's cache still holds."""
_PIECE_BYTES: Final = 1 << 24
"""Bytes that are written at a time: enough that a disk far away is asked seldom."""
_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_UNKNOWN: Final = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system answers that has no such thing."""
_ADVICE: Final[Mapping[int, str]] = {
    errno.EROFS: " Make it writable again: the system may have met errors of the disk.",
    errno.EACCES: " Give back the right to write there.",
    errno.EPERM: " Give back the right to write there.",
}
_unsynced: Final[set[int]] = set()
"""Devices of which the user has been warned."""


def save_bytes(content: bytes) -> FileWriter:
    """Returns the writer of a file with `content`."""
    return lambda file: file.write(content)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file, wholly or not at all; a kill may leave a file that `remove_leftovers` removes.

    Raises:
        OSError: it could not be written; what was there is there still.
    """
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def has_name(descriptor: int, path: Path) -> bool:
    """Whether the open file `descriptor` is the one at `path` still."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def make_directory(path: Path) -> None:
    """Makes `path` and its parents, each of them durable in its own parent."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


class _NewFile:
    """A binary file that hashes and counts what is written to it, and remembers the error that the
    system gave: torch reports another.

    Whole pieces go to the disk past the system's cache, where the file system can do that: to fill
    the cache took up to ten times as long, on a processor that others need to train.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._piece = memoryview(mmap.mmap(-1, _PIECE_BYTES))  # at a page, as the disk wants it
        self._filled = 0
        self._is_direct, self._may_be_direct = False, _DIRECT != 0
        self.digest = DIGESTS[KIND]()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            chunk = view[at : at + min(_CHUNK_BYTES, _PIECE_BYTES - self._filled)]
            self._piece[self._filled : self._filled + len(chunk)] = chunk
            self.digest.update(self._piece[self._filled : self._filled + len(chunk)])
            self._filled += len(chunk)
            at += len(chunk)
            if self._filled == _PIECE_BYTES:
                self._pass_on()
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Does nothing: `finish` does."""

    def finish(self) -> None:
        """Makes all of it durable."""
        self._pass_on()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _pass_on(self) -> None:
        rest, self._filled = self._piece[: self._filled], 0
        self._set_direct(len(rest) == _PIECE_BYTES)
        while rest:
            try:
                rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                refused = self._is_direct and error.errno in _UNKNOWN
                self._may_be_direct = False  # the disk wants other pieces, or took a part of this
                self._set_direct(False)
                if not refused or self._is_direct:
                    self.error = error
                    raise

    def _set_direct(self, wanted: bool) -> None:
        wanted = wanted and self._may_be_direct
        if wanted == self._is_direct:
            return
        import fcntl  # POSIX only; this room is imported everywhere

        try:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL) ^ _DIRECT
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
            self._is_direct = wanted
        except OSError:  # not in this file system
            self._may_be_direct = False


def write_file(path: Path, write: FileWriter) -> dict[str, Any]:
    """Writes and syncs a file; returns its `size` in bytes and its digest, by its kind.

    Raises:
        OSError: the system's own error, whatever `write` made of it.
    """
    with contextlib.closing(_NewFile(path)) as file:
        try:
            write(file)  # type: ignore[arg-type]
        except Exception:
            if file.error is not None:
                raise file.error from None
            raise
        file.finish()
    return {"size": file.size, KIND: file.digest.hexdigest()}


def sync(path: Path) -> None:
    """Makes the content of a file durable, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes names in `path` durable, where the file system lets a directory be synced."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        device = path.stat().st_dev
        if device not in _unsynced:
            _unsynced.add(device)
            logger.warning(
                "the file system of %s syncs no directories (%s): a snapshot that was just written "
                "may be gone after a power failure.",
                path,
                error.strerror,
            )


def explain(target: Path, files: Mapping[str, FileWriter], error: Exception) -> str:
    """Returns why `files` could not be written to the directory `target`, and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return f"the snapshot {target} could not be written: {error}"
    text = f"the snapshot {target} could not be written: {os.strerror(error.errno)}."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{text}{_ADVICE.get(error.errno, '')}"
    with contextlib.suppress(Exception):  # the same error again, in the worst case
        sizes = [_measure(write) for write in files.values()]
        if error.errno == errno.EFBIG:
            import resource  # POSIX only; this room is imported everywhere

            most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            limit = f"{most:,} (ulimit -f)" if most != resource.RLIM_INFINITY else "fewer"
            text += f" Its largest file has {max(sizes):,} bytes, and may have {limit}."
            return f"{text} Raise that limit, or choose another output_dir."
        text += f" It needs {sum(sizes):,} bytes"
        free = os.statvfs(target.parent)
        if error.errno == errno.EDQUOT:
            return f"{text}, more than your quota has left there. Remove files of yours there."
        if free.f_files and not free.f_favail:
            return f"{text}, and no file can be added there (df -i). Remove some."
        text += f", and {free.f_bavail * free.f_frsize:,} are free there."
    return f"{text} Free some space."


def _measure(write: FileWriter) -> int:
    """Returns the bytes that `write` would write."""
    with contextlib.closing(_NewFile(Path(os.devnull))) as nowhere:
        write(nowhere)  # type: ignore[arg-type]
    return nowhere.size
