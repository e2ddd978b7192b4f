"""The last line of a terminal, which stays below whatever else is written there. Knows the codes
of terminals, and nothing of what the line says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
from typing import Any, Final, TextIO

__all__ = ["BottomLine", "Lines", "is_terminal"]

_ERASE: Final = "\r\x1b[K"


def is_terminal(file: Any) -> bool:
    """Whether `file` is a terminal, be it a dumb one."""
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # somebody's own, or closed
        return False


def _width_of(file: Any) -> int:
    """Returns the columns of the terminal behind `file`, of which the last stays empty."""
    columns = 0
    with contextlib.suppress(AttributeError, ValueError, OSError):
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(file.fileno()).columns
    columns = columns or shutil.get_terminal_size().columns  # some terminals do not tell theirs
    return max(columns, 20) - 1


class Lines:
    """Lines in a file, or in a terminal that can do nothing else."""

    def __init__(self, file: TextIO) -> None:
        """Keeps a reference."""
        self._file = file

    @property
    def width(self) -> int | None:
        """Characters of a line; None: no limit."""
        return _width_of(self._file) if is_terminal(self._file) else None

    def write(self, text: str) -> None:
        """Writes `text`; where nobody reads any more, that is all the same."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"{text}\n")
            self._file.flush()

    def draw(self, text: str) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


class BottomLine:
    """Draws the line, and takes it away while something else is written to standard output or
    standard error: by `print`, by a handler of logging, by a warning. Behind an unfinished line (a
    prompt, somebody else's bar) it waits for the end of that.

    Nothing is drawn by a thread: a debugger's prompt stays as it is.
    """

    def __init__(self, file: TextIO, *, forced: bool) -> None:
        """Takes the streams over, until `close`.

        Args:
            file: standard error.
            forced: standard output is shown in the same place, though it is no terminal.
        """
        self._file = file
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._text = ""
        self._is_open = False
        self._streams = {"stderr": file}
        if sys.stdout is not None and (forced or is_terminal(sys.stdout)):
            self._streams["stdout"] = sys.stdout
        self._above = {name: _Above(stream, self) for name, stream in self._streams.items()}
        for name, above in self._above.items():
            setattr(sys, name, above)
        self._handlers = self._take_handlers()

    def _take_handlers(self) -> list[tuple[logging.StreamHandler[Any], Any]]:
        """Lets the handlers of logging that hold a stream of ours write above the line; returns
        them, each with what it held.
        """
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        taken = []
        for each in loggers:
            for handler in getattr(each, "handlers", ()):
                for name, stream in self._streams.items():
                    if getattr(handler, "stream", None) is stream:
                        handler.setStream(self._above[name])
                        taken.append((handler, stream))
        return taken

    @property
    def width(self) -> int:
        """Characters of a line."""
        return _width_of(self._file)

    def write(self, text: str) -> None:
        """Writes `text` above the line; where nobody reads any more, that is all the same."""
        with contextlib.suppress(OSError, ValueError):
            self.write_above(self._file, f"{text}\n")

    def draw(self, text: str) -> None:
        """Shows `text`, of one line that fits, in place of what the line showed before."""
        with self._lock:
            self._text = text
            if not self._is_open:
                self._send(_ERASE + text)

    def close(self) -> None:
        """Leaves the line as it is, and gives the streams back."""
        with self._lock:
            if self._text and not self._is_open:
                self._send("\n")
            for name, above in self._above.items():
                if getattr(sys, name) is above:  # else somebody has redirected it meanwhile
                    setattr(sys, name, self._streams[name])
            for handler, stream in self._handlers:
                if handler.stream in self._above.values():
                    handler.setStream(stream)

    def write_above(self, file: TextIO, text: str) -> int:
        """Writes `text` to `file`, and the line anew below it."""
        if os.getpid() != self._process:  # forked off: the lock may be held there for ever
            return file.write(text)
        with self._lock:
            if self._text and not self._is_open:
                self._send(_ERASE)
            written = file.write(text)
            self._is_open = not text.endswith("\n") if text else self._is_open
            if not self._is_open and self._text:
                file.flush()
                self._send(self._text)
            return written

    def _send(self, text: str) -> None:
        """Writes to the terminal; whoever has closed it reads nothing more."""
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError):
            self._text = ""


class _Above:
    """A standard stream while there is a line below it."""

    def __init__(self, file: TextIO, line: BottomLine) -> None:
        self._file, self._line = file, line

    def write(self, text: str) -> int:
        return self._line.write_above(self._file, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
