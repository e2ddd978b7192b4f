"""The line of a run in a notebook: an output of its own at the top of the cell, which is replaced.
Needs no widgets.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["CellLine", "is_notebook"]


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class CellLine:
    """One line of text at the top of the output of the cell that is run; lines stand below it, as
    what the cell prints.
    """

    width = 100

    def __init__(self) -> None:
        """Shows nothing yet."""
        self._shown: Any = None

    def write(self, text: str) -> None:
        """Prints `text`, not to standard error, which notebooks show in red."""
        print(text, flush=True)  # noqa: T201

    def draw(self, text: str) -> None:
        """Shows `text` in place of what was there before."""
        if self._shown is None:
            from IPython.display import display

            self._shown = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._shown.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        """Leaves the line as it is."""
