"""What the processes of a run have to agree on about its snapshots."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trainer_callback import CallbackError, SnapshotError, option_text
from trainer_callback.calls.identity import Plugin

from ..processes.ranks import Ranks
from ..processes.sharding import holds_sharded
from .packing import pack, unpack
from .store import Found

__all__ = ["check_same", "keep_own_states", "match_sharded", "pick_own_states"]

logger: logging.Logger = logging.getLogger("trainer")


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


def keep_own_states(state: Mapping[str, Any], keys: Collection[str], ranks: Ranks) -> None:
    """Puts the callbacks' states of the other processes that have the state keys `keys` into what
    the snapshot keeps of those processes.

    Raises:
        CallbackError: one has DTensors, which are parts of what all processes have.
    """
    if ranks.is_alone:
        return
    own = {key: each for key, each in state["callback_state"].items() if key in keys}
    divided = next((key for key, each in own.items() if holds_sharded(each)), None)
    if divided is not None:
        raise CallbackError(
            f"{divided} has state_per_process, and answered on_snapshot_save with DTensors. "
            "Answer tensor.to_local(), or let all processes have one state."
        )
    packed = ranks.gather_on_main(pack(own), "states of each process")
    for other, each in zip(state["other_ranks"], packed[1:], strict=False):
        other["callback_state"] = unpack(each)


def pick_own_states(
    state: Mapping[str, Any], plugins: Sequence[Plugin], ranks: Ranks
) -> tuple[dict[str, Any], set[str]]:
    """Returns the callbacks' states that this process goes on with, and the keys of those that each
    process has for itself; also of callbacks that are not in this run.
    """
    saved, others = dict(state["callback_state"]), state.get("other_ranks", [])
    mine = [*others[ranks.rank - 1 : ranks.rank]] if ranks.rank else []
    own = mine[0].get("callback_state", {}) if mine else {}
    shared = {each.state_key for each in plugins if not each.state_per_process}
    keys = {each.state_key for each in plugins if each.state_per_process}
    kept = {key for other in others for key in other.get("callback_state", ())} - shared
    for key in sorted((keys & saved.keys()) - kept) if others and ranks.is_main else ():
        logger.warning(
            "the snapshot has one state of %s for all processes, and each goes on from that.", key
        )
    if ranks.rank:
        saved = {key: each for key, each in saved.items() if key not in kept}
        saved.update({key: each for key, each in own.items() if key in kept})
    return saved, keys | kept
