"""The output directory as a place: usable, locked by one process, free of leftovers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from .config import ConfigError
from .snapshot import make_directory

__all__ = ["RunDirectory"]

logger: logging.Logger = logging.getLogger("trainer")

_LOCK: Final = ".lock"
_DIRECTORIES: Final = ("snapshots", "final", "weights")
_OWN: Final = (*_DIRECTORIES, "metrics.jsonl", "config.yaml")

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
        return any((self.path / name).exists() for name in ("snapshots", "final", "metrics.jsonl"))

    def __enter__(self) -> RunDirectory:
        """Makes the directory, tries a write, takes the lock.

        Raises:
            ConfigError: it cannot be written, or another run has the lock; the message has the
                cause or the other's pid and host.
        """
        try:
            make_directory(self.path)
            probe = self.path / ".probe"
            probe.write_bytes(b"probe")
            probe.unlink()
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"the output directory {str(self.path)!r} cannot be written: {error.strerror}. "
                "Choose another output_dir."
            ) from error
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
        """
        for name in _OWN:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

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
        for name in _DIRECTORIES:
            part = self.path / name
            if part.exists() and not part.is_dir():
                raise ConfigError(
                    f"{str(part)!r} is in the way: a run keeps a directory of that name there. "
                    "Move it, or choose another output_dir."
                )
