"""Tokens on disk, so that a text is encoded once: files named by a digest of text and tokenizer.

Files are only ever written whole, so any number of runs may share a folder; deleting it costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer_callback import UsageError

from .options import TextOptions
from .tokenizer import (
    TokenArray,
    Tokenizer,
    load_tokenizer,
    tokenizer_bytes,
    train_tokenizer,
)

__all__ = ["TokenCache"]


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

    def tokenizer(self, options: TextOptions, text: str) -> Tokenizer:
        """Returns the tokenizer of `options`, trained on `text` now or (bpe) by an earlier run.

        Raises:
            UsageError: the folder that was asked for cannot be written, or a library is missing.
        """
        if options.tokenizer != "bpe":
            return train_tokenizer(options, text)
        path = self._path(f"bpe {options.vocab_size}", text, ".json")
        if path is not None and path.exists():
            try:
                return load_tokenizer(path)
            except UsageError:
                self.notes.append(f"{path} was damaged and is written again")
        tokenizer = train_tokenizer(options, text)
        if path is not None:
            self._write(path, lambda target: target.write_bytes(tokenizer_bytes(tokenizer)))
        return tokenizer

    def tokens(self, text: str, tokenizer: Tokenizer) -> Path | TokenArray:
        """Returns the .npy file of the tokens of `text`, or the tokens if no folder is usable.

        Raises:
            UsageError: the folder that was asked for cannot be written.
        """
        path = self._path(json.dumps(tokenizer.to_dict(), sort_keys=True), text, ".npy")
        if path is not None and _holds_tokens(path):
            return path
        ids = tokenizer.encode(text)
        if path is not None and self._write(path, lambda target: np.save(target, ids)):
            return path
        return ids

    def _path(self, key: str, text: str, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(key.encode("utf-8"))
        digest.update(text.encode("utf-8"))
        return self.folder / f"{digest.hexdigest()[:32]}{suffix}"

    def _write(self, path: Path, write: Callable[[Path], object]) -> bool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
                target = Path(folder, path.name)
                write(target)
                with target.open("rb+") as file:
                    os.fsync(file.fileno())
                target.replace(path)
        except OSError as error:
            self._give_up(f"{path.parent} cannot be written: {error.strerror or error}", error)
            return False
        return True

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


def _holds_tokens(path: Path) -> bool:
    """Whether the file is there and has the length that its header promises."""
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return False
    return tokens.ndim == 1 and tokens.dtype.kind == "u"
