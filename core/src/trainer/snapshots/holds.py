"""Snapshots that retention leaves alone for a while, because somebody reads them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from .snapshot import remove_snapshot

__all__ = ["Hold", "Holds"]


class Holds:
    """Who reads which snapshot; from any thread."""

    def __init__(self) -> None:
        # one that is collected while this thread has it gives its snapshot back
        self._lock = threading.RLock()
        self._readers: Counter[Path] = Counter()

    def take(self, path: Path, then: Callable[[], object]) -> Hold:
        """Returns a hold on a snapshot that is there.

        Args:
            then: called where the last reader has left.

        Raises:
            FileNotFoundError: it is gone.
        """
        with self._lock:
            if not path.is_dir():
                raise FileNotFoundError(path)
            self._readers[path] += 1
        return Hold(self, path, then)

    def give_back(self, path: Path) -> bool:
        """Lets one reader go; returns whether it was the last."""
        with self._lock:
            self._readers[path] -= 1
            if self._readers[path]:
                return False
            del self._readers[path]
            return True

    def remove_unread(self, path: Path) -> None:
        """Removes a snapshot that nobody reads."""
        with self._lock:
            if path not in self._readers:
                remove_snapshot(path)


class Hold(AbstractContextManager[Path]):
    """Keeps one snapshot from when it is made to its exit; entered as the path. One that is dropped
    without having been entered gives the snapshot back too.
    """

    def __init__(self, holds: Holds, path: Path, then: Callable[[], object]) -> None:
        self._holds, self._path, self._then = holds, path, then
        self._is_held = True

    def __enter__(self) -> Path:
        """Returns the path of the snapshot."""
        return self._path

    def __exit__(self, *_: object) -> None:
        if self._give_back():
            self._then()

    def __del__(self) -> None:
        self._give_back()

    def _give_back(self) -> bool:
        is_held, self._is_held = self._is_held, False
        return is_held and self._holds.give_back(self._path)
