"""Tokens on disk, so that a text is encoded once: files named by a digest of text and tokenizer.

Files are only ever written whole, so any number of runs may share a folder; deleting it costs time.
Each ends with a digest, which is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from trainer_callback import UsageError

from .options import TextOptions
from .tokenizer import (
    TokenArray,
    Tokenizer,
    parse_tokenizer,
    tokenizer_bytes,
    train_tokenizer,
)
from .utf8 import pieces

__all__ = ["TokenCache"]

_NEW: Final = ".trainer-lm-new-"

_FORM: Final = b"2 "
"""Raised when the same text and tokenizer make another file."""

_DIGEST_BYTES: Final = hashlib.sha256().digest_size
"""Bytes at the end of each file: a digest of its key and of all before them."""


class _Entry(NamedTuple):
    path: Path
    key: bytes


class TokenCache:
    """A folder of tokens and trained tokenizers.

    Where the default folder cannot be written, tokens stay in memory and `notes` says so; a folder
    that was asked for is an error then.

    Args:
        folder: where to keep them; default `trainer-lm` in $XDG_CACHE_HOME or ~/.cache.

    Attributes:
        folder: the folder, or None from the moment it proved unusable.
        notes: one sentence for each thing a person may not expect.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._required = folder is not None
        self.folder: Path | None = None
        self.notes: list[str] = []
        try:
            self.folder = (folder or _default_folder()).expanduser()
        except RuntimeError as error:
            self._give_up(str(error), error)

    def tokenizer(self, options: TextOptions, text: bytes) -> Tokenizer:
        """Returns the tokenizer of `options`, trained on `text` now or (bpe) by an earlier run.

        Raises:
            UsageError: the folder that was asked for cannot be written, or a library is missing.
        """
        if options.tokenizer != "bpe":
            return train_tokenizer(options, pieces(text))
        entry = self._entry(f"bpe {options.vocab_size}", text, ".json")
        found = self._find(entry)
        if found is not None:
            return parse_tokenizer(found.read_bytes()[:-_DIGEST_BYTES])
        tokenizer = train_tokenizer(options, pieces(text))
        self._write(entry, [tokenizer_bytes(tokenizer)])
        return tokenizer

    def tokens(self, text: bytes, tokenizer: Tokenizer) -> Path | TokenArray:
        """Returns the .npy file of the tokens of `text`, or the tokens if no folder is usable.

        Raises:
            UsageError: the folder that was asked for cannot be written.
        """
        entry = self._entry(json.dumps(tokenizer.to_dict(), sort_keys=True), text, ".npy")
        found = self._find(entry)
        if found is not None:
            return found
        ids = list(tokenizer.encode_pieces(pieces(text))) or [tokenizer.encode("")]
        header = io.BytesIO()
        form = {
            "descr": np.lib.format.dtype_to_descr(ids[0].dtype),
            "fortran_order": False,
            "shape": (sum(len(each) for each in ids),),
        }
        np.lib.format.write_array_header_1_0(header, form)
        written = self._write(entry, [header.getvalue(), *(each.data for each in ids)])
        return np.concatenate(ids) if written is None else written

    def _entry(self, key: str, text: bytes, suffix: str) -> _Entry | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(_FORM + key.encode("utf-8"))
        digest.update(text)
        return _Entry(self.folder / f"{digest.hexdigest()[:32]}{suffix}", digest.digest())

    def _find(self, entry: _Entry | None) -> Path | None:
        """Returns the file if it is there, whole, and the one that was written under its name."""
        if entry is None or not os.path.lexists(entry.path):
            return None
        try:
            size = entry.path.stat().st_size - _DIGEST_BYTES
            digest = hashlib.sha256(entry.key)
            with entry.path.open("rb") as file:
                while block := file.read(min(2**20, size)) if size > 0 else b"":
                    digest.update(block)
                    size -= len(block)
                if size == 0 and file.read() == digest.digest():
                    return entry.path
        except OSError as error:
            self.notes.append(f"{entry.path} cannot be read ({error.strerror}), is written again")
            return None
        self.notes.append(f"{entry.path} was damaged and is written again")
        return None

    def _write(self, entry: _Entry | None, parts: Iterable[bytes | memoryview]) -> Path | None:
        if entry is None:
            return None
        folder = entry.path.parent
        digest = hashlib.sha256(entry.key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=_NEW) as place:
                target = Path(place, entry.path.name)
                with target.open("wb") as file:
                    for part in parts:
                        digest.update(part)
                        file.write(part)
                    file.write(digest.digest())
                    file.flush()
                    os.fsync(file.fileno())
                target.replace(entry.path)
        except OSError as error:
            self._give_up(f"{folder} cannot be written: {error.strerror or error}", error)
            return None
        return entry.path

    def _give_up(self, reason: str, error: Exception) -> None:
        reason = reason.rstrip(".")
        if self._required:
            raise UsageError(
                f"--cache_dir: {reason}. Name a folder that can be written, or leave it out."
            ) from error
        self.notes.append(f"{reason}; tokens stay in memory (--cache_dir names another place)")
        self.folder = None


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "trainer-lm")


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes left that were killed while they wrote, a day ago or earlier."""
    for path in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(path)
