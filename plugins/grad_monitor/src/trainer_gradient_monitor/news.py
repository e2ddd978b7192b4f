"""A measured update -> the lines about it that a person should see. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from .measurement import Reading
from .names import readable
from .verdicts import SEVERITY, Verdict

__all__ = ["describe_change", "describe_disconnected", "describe_nonfinite"]

_MOST_NAMES: Final = 4


def describe_change(old: Mapping[str, Verdict], new: Mapping[str, Verdict]) -> str:
    """Returns which layers have another verdict, worst first; empty where none has.

    A layer that was not seen before was healthy. Non-finite and disconnected ones have lines of
    their own.
    """
    changed: dict[Verdict, list[str]] = {}
    for name, verdict in new.items():
        if verdict != old.get(name, "healthy") and verdict not in ("non-finite", "disconnected"):
            changed.setdefault(verdict, []).append(name)
    parts = []
    for verdict in sorted(changed, key=SEVERITY.__getitem__, reverse=True):
        word = "healthy again" if verdict == "healthy" else verdict
        parts.append(f"{word}: {_name_some(changed[verdict])}")
    return "; ".join(parts)


def describe_disconnected(old: Sequence[str], new: Sequence[str]) -> str:
    """Returns which parameters got no gradient, if some of them had one before; else nothing."""
    lost = [name for name in new if name not in old]
    return f"disconnected, they require a gradient and got none: {_name_some(lost)}" if lost else ""


def describe_nonfinite(reading: Reading) -> str:
    """Returns where NaN and infinite gradients are, the first by name; empty where none is."""
    if reading.nonfinite:
        name, count = next(iter(reading.nonfinite.items()))
        return (
            f"NaN or infinite gradients in {len(reading.nonfinite)} parameters, "
            f"the first is {readable(name)} with {count} entries"
        )
    if math.isfinite(reading.total_norm):
        return ""
    return "the total norm is not finite, but every gradient that is measured is"


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(readable, names[:_MOST_NAMES])) + more
