"""What becomes of the state of each callback at a resume: dealt out, and told as a table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trainer_callback import PluginError
from trainer_callback.identity import Plugin
from trainer_callback.saved_state import read_saved_state

__all__ = ["Deal", "deal_out"]

logger: logging.Logger = logging.getLogger("trainer")

_ABSENT: Final = "%s was absent from update %d to %d: it %s."
_AFRESH: Final = "needs every update, so it starts afresh"
_GOES_ON: Final = "goes on from its state of update %d, and knows nothing of what came between"


@dataclass(frozen=True)
class Deal:
    """Who gets what of a snapshot's callback state.

    Attributes:
        states: state key -> what its callback is to get.
        carried: state key -> state of a callback that is not in this run, for later snapshots.
        carried_writers: state key -> what the manifest says of who wrote what is carried.
    """

    states: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)
    carried_writers: dict[str, Any] = field(default_factory=dict)


def deal_out(
    states: Mapping[str, Any],
    writers: Mapping[str, Any],
    plugins: Sequence[Plugin],
    keeping: Collection[str],
    update: int,
) -> Deal:
    """Returns who gets which state, and logs a table of the verdicts.

    Args:
        states: state key -> state, of the snapshot.
        writers: state key -> what the manifest says of who wrote it.
        plugins: the callbacks of this run.
        keeping: names of those that have a state; of the others nothing is told.
        update: that of the snapshot. A state that was carried along belongs to an earlier one.

    Raises:
        PluginError: a callback cannot read what was saved under its key; the first one's.
    """
    present = {plugin.state_key: plugin for plugin in plugins}
    deal = Deal(states=dict(states))
    rows: list[tuple[str, str]] = []
    refusals: list[PluginError] = []
    for key in [*present, *sorted(set(states) - set(present))]:
        plugin, writer = present.get(key), {"update": update, **writers.get(key, {})}
        who = plugin.label if plugin is not None else _describe_absent(key, writer)
        try:
            state, verdict = read_saved_state(plugin, states.get(key), writer, update)
        except PluginError as error:
            refusals.append(error)
            rows.append((who, "refused"))
            continue
        if plugin is None:
            deal.carried[key], deal.carried_writers[key] = state, writer
            logger.warning(
                "the snapshot has state of %s, which is not in this run: it is carried along.", who
            )
        elif state is not None:
            deal.states[key] = state
        else:
            deal.states.pop(key, None)
        if plugin is not None and key in states and writer["update"] < update:
            goes_on = _AFRESH if state is None else _GOES_ON % writer["update"]
            logger.warning(_ABSENT, who, writer["update"], update, goes_on)
        if state is not None or (plugin is not None and plugin.name in keeping):
            rows.append((who, verdict))
    _log(rows)
    for other in refusals[1:]:
        logger.error("%s", other)
    if refusals:
        raise refusals[0]
    return deal


def _describe_absent(key: str, writer: Mapping[str, Any]) -> str:
    origin = f"{writer.get('distribution', '')} {writer.get('version', '')}".strip()
    return f"{key} ({origin})" if origin else key


def _log(rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    width = max(len(who) for who, _ in rows)
    lines = [f"  {who.ljust(width)}  {verdict}" for who, verdict in rows]
    logger.info("%s", "\n".join(["state of the callbacks:", *lines]))
