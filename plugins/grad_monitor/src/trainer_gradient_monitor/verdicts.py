"""Numbers of a layer -> what is wrong with it. Pure."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from .groups import Groups
from .measurement import Reading

__all__ = ["SEVERITY", "Verdict", "judge", "judge_all"]

Verdict: TypeAlias = Literal["healthy", "vanishing", "disconnected", "exploding", "non-finite"]

SEVERITY: Final[dict[Verdict, int]] = {
    "healthy": 0,
    "vanishing": 1,
    "disconnected": 2,
    "exploding": 3,
    "non-finite": 4,
}


def judge(
    *, rms: float, norm: float, nonfinite: float, vanish_threshold: float, explode_limit: float
) -> Verdict:
    """Returns the verdict on one layer at one measured update.

    Args:
        rms: root mean square of its gradient; below `vanish_threshold` it is vanishing.
        norm: of its gradient; above `explode_limit` it is exploding.
        nonfinite: how many entries are NaN or infinite.
        vanish_threshold: an rms.
        explode_limit: a norm; infinite where nothing is known yet to compare with.
    """
    if nonfinite or not math.isfinite(rms):
        return "non-finite"
    if norm > explode_limit:
        return "exploding"
    return "vanishing" if rms < vanish_threshold else "healthy"


def judge_all(
    groups: Groups, reading: Reading, *, vanish_threshold: float, explode_limit: float
) -> dict[str, Verdict]:
    """Returns row -> verdict, for the rows that had a gradient or should have had one."""
    verdicts: dict[str, Verdict] = {}
    for row, members in groups.items():
        if row in reading.rows:
            place = reading.rows.index(row)
            verdicts[row] = judge(
                rms=reading.columns["rms"][place],
                norm=reading.columns["norm"][place],
                nonfinite=reading.columns["nonfinite"][place],
                vanish_threshold=vanish_threshold,
                explode_limit=explode_limit,
            )
        elif not set(members).isdisjoint(reading.disconnected):
            verdicts[row] = "disconnected"
    return verdicts
