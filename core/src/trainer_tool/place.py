"""The path of a run, as it is written on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["read_place"]


def read_place(text: str) -> Path:
    """Returns the path that `text` means; a type for argparse.

    Raises:
        argparse.ArgumentTypeError: it is empty, or of a user whom nobody knows.
    """
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; use . for this directory")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
