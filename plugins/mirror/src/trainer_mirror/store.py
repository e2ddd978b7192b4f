"""Directories <-> a place that fsspec reaches, each of them whole or not there. Knows no trainer.

A place has, for each copy, a folder NAME and, written last, `NAME.json`: the run's id, and size and
SHA-256 of each file. A folder without it is no copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, BinaryIO, Final

from trainer_callback import UsageError

__all__ = ["Copy", "DamagedError", "Store", "read_sizes"]

_NAME: Final = re.compile(r"step-(\d+)-[0-9a-f]{8}")
_BLOCK: Final = 1 << 20


class DamagedError(Exception):
    """A copy is not what its list says; the message has the file."""


@dataclass(frozen=True)
class Copy:
    """A whole copy of a snapshot.

    Attributes:
        step: its update.
        name: of its folder.
        run_id: of the run that it is of.
        files: path -> `size` in bytes and `sha256`, as `read_sizes` gives them.
    """

    step: int
    name: str
    run_id: str
    files: Mapping[str, Mapping[str, object]]


class Store:
    """A folder at `url`, of which this has the whole copies."""

    def __init__(self, url: str, stop: Event | None = None) -> None:
        """Finds the client for `url`; nothing is connected yet.

        Args:
            stop: what is being sent is given up once this is set.

        Raises:
            UsageError: there is none, or it is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            self._fs, self._root = url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"there is no client for {url}: {error}. Install one, or use another URL."
            ) from error
        self._stop = stop or Event()

    def copies(self) -> list[Copy]:
        """Returns the whole copies, the newest first."""
        found = []
        for name in self._names():
            if _step_of(name) < 0 or not name.endswith(".json"):
                continue
            with contextlib.suppress(ValueError, LookupError, TypeError):  # half written: none
                told = json.loads(self._fs.cat_file(f"{self._root}/{name}"))
                files, copy = dict(told["files"]), name.removesuffix(".json")
                found.append(Copy(_step_of(name), copy, told["run_id"], files))
        return sorted(found, key=lambda copy: copy.step, reverse=True)

    def send(self, name: str, run_id: str, files: Mapping[str, tuple[BinaryIO, int]]) -> None:
        """Writes open files, of each so many bytes, as the copy `name`, in their order. One that is
        there already is none until it is written anew.

        Raises:
            Exception: whatever the client raises.
            OSError: what is there has another size, or another checksum where the store has one.
        """
        self.remove(f"{name}.json")
        told = {file: self._write(f"{name}/{file}", *source) for file, source in files.items()}
        text = json.dumps({"run_id": run_id, "files": told}, indent=1).encode()
        self._write(f"{name}.json", io.BytesIO(text), len(text))

    def fetch(self, copy: Copy, target: Path) -> None:
        """Reads a copy into the directory `target`.

        Raises:
            DamagedError: it is not what was sent.
        """
        for name, told in copy.files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DamagedError(f"{copy.name}.json names {name!r}, which leads elsewhere")
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                there = f"{self._root}/{copy.name}/{name}"
                with self._fs.open(there, "rb") as source, file.open("wb") as to:
                    while block := source.read(_BLOCK):
                        to.write(block)
            except FileNotFoundError as error:
                raise DamagedError(f"{copy.name}/{name} is missing") from error
            if read_sizes(file) != told:
                raise DamagedError(f"{copy.name}/{name} is damaged: it is not what was sent")

    def prune(self, name: str, keep: int) -> None:
        """Removes copies older than the newest `keep`, others of the update of `name`, or of a
        later one, which a resume has left behind, and folders that were never whole.
        """
        newest = _step_of(name)
        kept = [copy.step for copy in self.copies() if copy.step <= newest][:keep]
        names = self._names()
        for each in sorted(names, key=lambda each: not each.endswith(".json")):  # lists first
            copy, step = each.removesuffix(".json"), _step_of(each)
            outside = step >= newest or step < min(kept, default=0)
            if step >= 0 and copy != name and (outside or f"{copy}.json" not in names):
                self.remove(each)

    def remove(self, name: str) -> None:
        """Removes a folder or a list; nothing happens where it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{name}", recursive=not name.endswith(".json"))

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [PurePosixPath(path).name for path in paths]

    def _write(self, name: str, source: BinaryIO, size: int) -> dict[str, object]:
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        sha256, md5, left = hashlib.sha256(), hashlib.md5(usedforsecurity=False), size
        source.seek(0)
        with self._fs.open(path, "wb") as to:
            while left and (block := source.read(min(_BLOCK, left))):
                to.write(block)
                sha256.update(block)
                md5.update(block)
                left -= len(block)
                if self._stop.is_set():
                    raise OSError("the run was over before it was sent")
        found: Mapping[str, Any] = self._fs.info(path)
        sums = (md5.hexdigest(), b64encode(md5.digest()).decode())  # as Google's store has it
        if left or found["size"] != size or found.get("md5Hash", sums[1]) not in sums:
            raise OSError(f"{name} has not arrived whole: {found['size']} bytes of {size}")
        return {"size": size, "sha256": sha256.hexdigest()}


def _step_of(name: str) -> int:
    """Returns the update of a copy, from the name of its folder or its list; -1 for other names."""
    match = _NAME.fullmatch(name.removesuffix(".json"))
    return -1 if match is None else int(match[1])


def read_sizes(file: Path) -> dict[str, object]:
    """Returns `size` and `sha256` of a file."""
    size, digest = 0, hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}
