"""The picture and the page, and how often they are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .files import PAGE, PICTURE, write_whole
from .measurement import Reading
from .page import render_page
from .picture import draw_picture
from .state import MonitorState

__all__ = ["Report"]

logger: logging.Logger = logging.getLogger("trainer.gradient_monitor")

_SHARE: Final = 50
"""Between two reports passes at least so many times what the last one took: 2 % of the run."""


class Report:
    """`gradient_flow.png` and `gradient_flow.html` of one run.

    Args:
        folder: where they are written; it exists.
        vanish_threshold: an rms, drawn as a line.
        clip_limit: of the total norm, drawn as a line; None where clipping is off.
    """

    def __init__(self, folder: Path, vanish_threshold: float, clip_limit: float | None) -> None:
        self.page: Path = folder / PAGE
        self.picture: Path = folder / PICTURE
        self._vanish_threshold = vanish_threshold
        self._clip_limit = clip_limit
        self._told: set[Path] = set()
        self._not_before = 0.0

    def write_if_cheap(self, state: MonitorState, last: Reading | None) -> None:
        """Writes both, unless that was done a short while ago."""
        if state.measured and time.monotonic() >= self._not_before:
            self.write(state, last)

    def write(self, state: MonitorState, last: Reading | None) -> None:
        """Writes both; whoever looks at them meanwhile sees the old ones or the new ones.

        Args:
            last: what was measured last, for the histogram.
        """
        start = time.monotonic()
        limits = (self._vanish_threshold, self._clip_limit)
        self._write(self.page, lambda: render_page(state, last, *limits).encode())
        self._write(self.picture, lambda: draw_picture(state, *limits))
        end = time.monotonic()
        self._not_before = end + _SHARE * (end - start)

    def _write(self, path: Path, render: Callable[[], bytes]) -> None:
        """One of the two that fails costs itself only, and is told once."""
        try:
            write_whole(path, render())
        except Exception as error:
            if path not in self._told:
                logger.warning("%s", _describe(path, error))
            self._told.add(path)


def _describe(path: Path, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"matplotlib cannot be imported ({error}): no picture, only the page."
    return f"{path} cannot be written: {type(error).__name__}: {error}. The monitor goes on."
