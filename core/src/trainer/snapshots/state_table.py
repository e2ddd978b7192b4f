"""What becomes of the state of each callback at a resume: dealt out, and told as a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trainer_callback import PluginError, StateError, TrainerProtocol
from trainer_callback.calls.identity import Plugin
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.calls.saved_state import describe_writer, read_saved_state
from trainer_callback.state import to_plain, to_plain_state

__all__ = ["Deal", "collect_states", "deal_out"]

logger: logging.Logger = logging.getLogger("trainer")

_ABSENT: Final = "%s was absent from update %d to %d: it %s."
_AFRESH: Final = "needs every update, so it starts afresh"
_GOES_ON: Final = "goes on from its state of update %d, and knows nothing of what came between"
_UNREAD: Final = (
    "%s has a state in the snapshot and does not read it: it starts fresh. Give it "
    "on_snapshot_load(self, state)."
)


@dataclass(frozen=True)
class Deal:
    """Who gets what of a snapshot's callback state.

    Attributes:
        states: state key -> what its callback is to get.
        carried: state key -> state of a callback that is not in this run, for later snapshots.
        carried_writers: state key -> what the manifest says of who wrote what is carried.
        last: state key -> the last state of a callback that may be switched off, and its update.
    """

    states: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)
    carried_writers: dict[str, Any] = field(default_factory=dict)
    last: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def hand_over(self, plugin: Plugin, state: Mapping[str, Any] | None, update: int) -> None:
        """Puts down `state`, of an update, as what `plugin` is to get; None is none."""
        if state is None:
            self.states.pop(plugin.state_key, None)
            return
        self.states[plugin.state_key] = state
        self.keep(plugin, state, update)

    def keep(self, plugin: Plugin, state: Mapping[Any, Any], update: int) -> None:
        """Keeps a copy of `state` where the callback may be switched off."""
        if not plugin.critical:
            self.last[plugin.state_key] = (to_plain(state), update)

    def carry(self, plugin: Plugin) -> None:
        """Carries the last state of a callback that was switched off along, for a run in which it
        works again.
        """
        key = plugin.state_key
        if key in self.last:
            self.carried[key], update = self.last[key]
            self.carried_writers[key] = {**describe_writer(plugin), "update": update}


def deal_out(
    states: Mapping[str, Any],
    writers: Mapping[str, Any],
    callbacks: CallbackManager,
    update: int,
) -> Deal:
    """Returns who gets which state, and logs a table of the verdicts.

    Args:
        states: state key -> state, of the snapshot.
        writers: state key -> what the manifest says of who wrote it.
        callbacks: those of this run.
        update: that of the snapshot. A state that was carried along belongs to an earlier one.

    Raises:
        PluginError: a callback cannot read what was saved under its key; the first one's.
    """
    present = {plugin.state_key: plugin for plugin in callbacks.plugins}
    keeping = callbacks.implementers("on_snapshot_save")  # of the others nothing is told
    reading = callbacks.askers("on_snapshot_load", {"checkpoint", "state"})
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
            rows.append((who, verdict))
            continue
        if key in states and writer["update"] < update:
            goes_on = _AFRESH if state is None else _GOES_ON % writer["update"]
            logger.warning(_ABSENT, who, writer["update"], update, goes_on)
        deal.hand_over(plugin, state, writer["update"])
        if state is not None and plugin.name not in reading:
            verdict = "not read"
            logger.warning(_UNREAD, who)
        if state is not None or plugin.name in keeping:
            rows.append((who, verdict))
    _log(rows)
    for other in refusals[1:]:
        logger.error("%s", other)
    if refusals:
        raise refusals[0]
    return deal


def collect_states(
    callbacks: CallbackManager, deal: Deal, trainer: TrainerProtocol
) -> dict[str, Any]:
    """Returns state key -> state of every callback, for a snapshot, and what is carried along.

    Raises:
        CallbackError: a callback failed, or its state cannot be saved.
    """
    epoch, step = trainer.epoch, trainer.step
    states: dict[str, Any] = {}
    for plugin, answer in callbacks.ask_state(trainer=trainer, epoch=epoch, step=step):
        try:
            states[plugin.state_key] = to_plain_state(answer, plugin.state_key, copy_tensors=False)
            deal.keep(plugin, states[plugin.state_key], step)
        except StateError as error:
            callbacks.caught(plugin, "on_snapshot_save", error)
    callbacks.finish()
    for plugin in callbacks.plugins:
        if plugin.name in callbacks.switched_off:
            deal.carry(plugin)
    return {**states, **deal.carried}


def _describe_absent(key: str, writer: Mapping[str, Any]) -> str:
    origin = f"{writer.get('distribution', '')} {writer.get('version', '')}".strip()
    return f"{key} ({origin})" if origin else key


def _log(rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    width = max(len(who) for who, _ in rows)
    lines = [f"  {who.ljust(width)}  {verdict}" for who, verdict in rows]
    logger.info("%s", "\n".join(["state of the callbacks:", *lines]))
