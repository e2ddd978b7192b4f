"""Numbers as a person reads them, and lines of them that fit a width. No number is ever cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["fit", "show_number", "show_pairs", "show_time", "wrap"]

_GAP = "  "


def show_number(value: float) -> str:
    """Returns four decimals, or four digits where those would say nothing."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.4g}"


def show_pairs(metrics: Mapping[str, float]) -> list[str]:
    """Returns each metric as `name value`."""
    return [f"{name} {show_number(value)}" for name, value in metrics.items()]


def show_time(seconds: float) -> str:
    """Returns `m:ss`, or `h:mm:ss` of an hour and more."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def wrap(parts: Iterable[str], width: int | None) -> str:
    """Returns the parts in a line; where it is wider than `width`, on several, cut between parts.

    Args:
        width: in characters; None: as wide as it is.
    """
    lines = [""]
    for part in filter(None, parts):
        longer = f"{lines[-1]}{_GAP}{part}" if lines[-1] else part
        if width is None or len(longer) <= width or not lines[-1].strip():
            lines[-1] = longer
        else:
            lines.append(f"    {part}")
    return "\n".join(lines)


def fit(parts: Sequence[tuple[int, str]], width: int) -> list[str]:
    """Returns the texts of the parts, in order, without those that do not fit.

    Args:
        parts: (rank, text); the highest ranks are left out first, those without a text always.
        width: in characters, of all of them with the gaps between.
    """
    kept = [part for part in parts if part[1]]
    while kept and len(_GAP.join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return [text for _, text in kept]
