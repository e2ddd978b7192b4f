"""The picture and the page, and how often they are written."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

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
        self.page: Path = folder / "gradient_flow.html"
        self.picture: Path = folder / "gradient_flow.png"
        self._vanish_threshold = vanish_threshold
        self._clip_limit = clip_limit
        self._can_draw = True
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
        page = render_page(state, last, self._vanish_threshold, self._clip_limit)
        _replace(self.page, page.encode())
        if self._can_draw:
            try:
                picture = draw_picture(state, self._vanish_threshold, self._clip_limit)
            except ImportError as error:
                self._can_draw = False
                logger.warning(
                    "matplotlib cannot be imported (%s): no picture, only the page.", error
                )
            else:
                _replace(self.picture, picture)
        end = time.monotonic()
        self._not_before = end + _SHARE * (end - start)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
