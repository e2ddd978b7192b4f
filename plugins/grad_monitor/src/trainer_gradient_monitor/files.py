"""The files of the monitor: which are its own, and writing one whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer_callback import UsageError

__all__ = ["FOLDER", "MARK", "PAGE", "PICTURE", "RECORD", "claim", "safe_name", "write_whole"]

FOLDER: Final = "gradient_flow"
RECORD: Final = "gradients.jsonl"
PAGE: Final = "gradient_flow.html"
PICTURE: Final = "gradient_flow.png"

MARK: Final = "trainer-plugin-grad-monitor"
"""In the first bytes of a page and of a picture: nobody else's has it."""

_HEAD: Final = 4096

_LINE: Final = re.compile(rb'\{"step": \d+, "epoch": \d+, "skipped": ')


def claim(folder: Path, names: Sequence[str]) -> None:
    """Makes `folder`, and checks that what is there under `names` was written by a monitor. What a
    killed one has left of a file is removed.

    Raises:
        UsageError: there is something else, which stays as it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if os.path.lexists(folder / name) and not _is_own(folder / name):
                raise FileExistsError(0, "it is not the gradient monitor's own", str(folder / name))
            _temporary(folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"the gradient monitor cannot write {error.filename or folder}: {error.strerror}. Move "
            "it away, or use another output_dir."
        ) from error


def safe_name(name: str) -> str:
    """Returns the name of a folder for whatever a module may be called."""
    return re.sub(r"[^\w.-]", "_", name)


def write_whole(path: Path, content: bytes) -> None:
    """Puts `content` in the place of the file. Whoever reads it meanwhile, or after a failure,
    finds the old one.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if path.name != RECORD:
        return MARK.encode() in head
    is_cut = b"\n" not in head and (b'{"step": '.startswith(head) or head.startswith(b'{"step": '))
    return is_cut or _LINE.match(head) is not None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
