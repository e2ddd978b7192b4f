"""The output directory as a place: usable, locked by one process, free of leftovers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

from .config import ConfigError
from .snapshot import make_directory

__all__ = ["RunDirectory"]

logger: logging.Logger = logging.getLogger("trainer")

_LOCK: Final = ".lock"
_DIRECTORIES: Final = ("snapshots", "final", "weights")
_METRICS: Final = "metrics.jsonl"
_OWN: Final = (*_DIRECTORIES, _METRICS, "config.yaml")

_open_locks: Final[set[int]] = set()
"""Descriptors of the locks that this process holds. A lock lasts as long as anybody has its file
open: a worker that outlives a killed run must not, so a forked child closes them.
"""


def _close_locks() -> None:
    for lock in _open_locks:
        os.close(lock)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_locks)


class RunDirectory:
    """Context manager that holds the lock of an output directory while a run writes there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def holds_run(self) -> bool:
        """Whether a run has written here before."""
        return any((self.path / name).exists() for name in ("snapshots", "final", _METRICS))

    def __enter__(self) -> RunDirectory:
        """Makes the directory, tries a write, takes the lock.

        Raises:
            ConfigError: it cannot be written, or another run has the lock; the message has the
                cause or the other's pid and host.
        """
        try:
            make_directory(self.path)
            _probe(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link's target is not ours to write
            self._lock = os.open(self.path / _LOCK, flags, 0o644)
        except OSError as error:
            raise _refusal(self.path, error) from error
        _open_locks.add(self._lock)
        try:
            self._acquire(self._lock)
            self._check_parts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            _open_locks.discard(self._lock)
            os.close(self._lock)  # which releases the lock
            self._lock = None

    def clear(self) -> None:
        """Removes what an earlier run wrote under the names of this project; a plugin's files
        stay.

        Raises:
            ConfigError: something cannot be removed.
        """
        for name in _OWN:
            target = self.path / name
            try:
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"{str(target)!r} cannot be removed: {error.strerror or error}. Remove it "
                    "yourself, or choose another output_dir."
                ) from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file that tells about the run.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            (self.path / name).write_bytes(content)
        except OSError as error:
            raise _refusal(self.path / name, error) from error

    def _acquire(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = {"pid": "unknown", "host": "unknown"}
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads(os.pread(lock, 1000, 0))
            raise ConfigError(
                f"the output directory {str(self.path)!r} is in use by process {owner['pid']} on "
                f"{owner['host']}. Wait for it, or choose another output_dir."
            ) from None
        except OSError as error:
            logger.warning(
                "the file system of %s has no locks (%s): see to it that no other run writes "
                "there.",
                self.path,
                error.strerror,
            )
            return
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _check_parts(self) -> None:
        """Refuses what a run would meet later: something else of the name of its parts, or a part
        that cannot be written.
        """
        for name in (*_DIRECTORIES, _METRICS):
            part = self.path / name
            wanted = "file" if name == _METRICS else "directory"
            if not os.path.lexists(part):
                continue
            if not (part.is_file() if name == _METRICS else part.is_dir()):
                raise ConfigError(
                    f"{str(part)!r} is in the way: a run keeps a {wanted} of that name there. "
                    "Move it, or choose another output_dir."
                )
            try:
                os.close(os.open(part, os.O_WRONLY)) if name == _METRICS else _probe(part)
            except OSError as error:
                raise _refusal(part, error) from error


def _probe(place: Path) -> None:
    """Writes a file without a name into the directory `place`."""
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        file.write(b"probe")


def _refusal(place: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the output directory {str(place)!r} cannot be written: {error.strerror}. Choose another "
        "output_dir."
    )
