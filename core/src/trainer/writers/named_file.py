"""A file that somebody has named, read whole: a pipe to its end, with a word where that takes long.
Knows nothing of what is in it. Imports no torch.
"""

from __future__ import annotations

import errno
import logging
import stat
import threading
from pathlib import Path
from typing import Final

__all__ = ["read_named"]

logger: logging.Logger = logging.getLogger("trainer")

_PATIENCE: Final = 2.0
"""Seconds without the end of a pipe after which the log says what is waited for."""


def read_named(path: Path) -> bytes:
    """Returns what is in `path`.

    Raises:
        OSError: it cannot be read, or is a device or a socket, which may have no end.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is a device or a socket, and no file", str(path))
    words = "%s is a pipe: waiting until its writer closes it."
    timer = threading.Timer(_PATIENCE, logger.warning, (words, path))
    timer.daemon = True
    if stat.S_ISFIFO(mode):
        timer.start()
    try:
        return path.read_bytes()
    except OSError as error:
        error.filename = error.filename or str(path)  # an error of reading names no file
        raise
    finally:
        timer.cancel()
