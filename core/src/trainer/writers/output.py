"""Standard output as that of a command: who has read enough ends it, a full disk is said."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

from trainer_callback import RunError

__all__ = ["printing", "write_out"]

_OF_SIGPIPE: Final = 128 + 13


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Context in which the command prints; at its end all of it is written.

    Raises:
        SystemExit: with the code of SIGPIPE where nobody reads on (`train-lm ... | head -3`).
        RunError: standard output cannot be written.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        found = error.__context__ if isinstance(error, SystemExit) else error  # which rich raises
        if not isinstance(found, BrokenPipeError):
            raise
        _discard_output()
        raise SystemExit(_OF_SIGPIPE) from None
    except OSError as error:
        _discard_output()
        raise RunError(f"standard output cannot be written: {error.strerror}.") from error


def write_out(text: str) -> None:
    """Prints `text` as it is; raises what `printing` does."""
    with printing():
        if sys.stdout is not None:
            sys.stdout.write(text)


def _discard_output() -> None:
    """Lets the interpreter, which writes what is left at its end, write it nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
