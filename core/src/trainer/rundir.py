"""The output directory as a place: usable, locked by one process, free of leftovers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from .config import ConfigError

__all__ = ["RunDirectory"]

_LOCK: Final = ".lock"
_OWN: Final = ("snapshots", "final", "weights", "metrics.jsonl", "config.yaml")


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
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(b"probe")
            probe.unlink()
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"the output directory {str(self.path)!r} cannot be written: {error.strerror}. "
                "Choose another output_dir."
            ) from error
        self._acquire(self._lock)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
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
        except OSError:
            owner = {"pid": "unknown", "host": "unknown"}
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads(os.pread(lock, 1000, 0))
            os.close(lock)
            self._lock = None
            raise ConfigError(
                f"the output directory {str(self.path)!r} is in use by process {owner['pid']} on "
                f"{owner['host']}. "
                "Wait for it, or choose another output_dir."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
