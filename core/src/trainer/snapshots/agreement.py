"""What the processes of a run have to agree on about its snapshots."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainer_callback import CallbackError, SnapshotError, option_text

from ..processes.ranks import Ranks
from ..processes.sharding import holds_sharded
from .store import Found

__all__ = ["check_same", "match_parts"]


def check_same(found: Found | None, ranks: Ranks) -> None:
    """Sees to it that all processes go on from the same snapshot, or that none has one.

    Raises:
        SnapshotError: in all of them, where they do not.
    """
    digests = ranks.gather(found and found[2]["digest"], "resume")
    if len({*digests}) > 1:
        raise SnapshotError(
            f"process {ranks.rank} would go on from {found and found[0]}, and another process from "
            "another snapshot. Give all of them the same output directory, and name a sound "
            f"snapshot of it: {option_text('resume', 'PATH')}."
        )


def match_parts(states: dict[str, Any], failed: set[str], ranks: Ranks) -> None:
    """Leaves in `states` of callbacks only such parts as all processes have, which is what can be
    gathered; those that have `failed` in one of them go.

    Raises:
        CallbackError: in all of them, where a callback has answered parts in some only.
    """
    parts = {key for key, each in states.items() if holds_sharded(each)}
    answers = ranks.gather((parts, failed), "parts of states")
    gone = {key for _, keys in answers for key in keys}
    for key in gone & states.keys():
        del states[key]
    counts = Counter(key for keys, _ in answers for key in keys - gone)
    for key, count in sorted(counts.items()):
        if count < ranks.world_size:
            raise CallbackError(
                f"{key} answered on_snapshot_save with DTensors in {count} of {ranks.world_size} "
                "processes. Answer them in all: the whole is gathered from all."
            )
