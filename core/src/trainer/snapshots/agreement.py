"""What the processes of a run have to agree on about its snapshots."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainer_callback import CallbackError, SnapshotError, option_text

from ..processes.ranks import Ranks
from ..processes.sharding import holds_sharded
from .store import Found

__all__ = ["check_same", "match_sharded"]


def check_same(found: Found | None, ranks: Ranks) -> None:
    """Checks that all processes go on from the same snapshot, or that none has one.

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


def match_sharded(states: dict[str, Any], failed: set[str], ranks: Ranks) -> None:
    """Leaves in `states` of callbacks what can be gathered: DTensors that all processes have. Of a
    callback that has failed in one of them nothing is left but what is carried along in the
    processes where it is among those that have `failed`.

    Raises:
        CallbackError: in all of them, where a callback has answered DTensors in some only.
    """
    sharded = {key for key, each in states.items() if holds_sharded(each)}
    answers = ranks.gather((sharded, failed), "parts of states")
    gone = {key for _, keys in answers for key in keys}
    for key in gone & states.keys():
        if key in sharded or key not in failed:
            del states[key]
    counts = Counter(key for keys, _ in answers for key in keys - gone)
    for key, count in sorted(counts.items()):
        if count < ranks.world_size:
            raise CallbackError(
                f"{key} answered on_snapshot_save with DTensors in {count} of {ranks.world_size} "
                "processes. Answer them in all: the whole is gathered from all."
            )
