"""Names of layers and parameters, which may hold anything, as people read them. Pure."""

from __future__ import annotations

from typing import Final

__all__ = ["readable"]

_LONGEST: Final = 120


def readable(name: str) -> str:
    """Returns the name on one line: what prints nothing, or turns the line round, as an escape; of
    a very long one the beginning and the end.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    half = _LONGEST // 2
    return shown if len(shown) <= _LONGEST else f"{shown[: half - 1]}…{shown[-half:]}"
