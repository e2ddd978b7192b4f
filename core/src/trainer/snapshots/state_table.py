"""What becomes of the state of each callback at a resume, and what later snapshots keep of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trainer_callback import PluginError, StateError, TrainerProtocol
from trainer_callback.calls.identity import Plugin
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.calls.saved_state import describe_writer, read_saved_state, rename_states
from trainer_callback.state import to_plain, to_plain_state

__all__ = ["CallbackStates", "load_states"]

logger: logging.Logger = logging.getLogger("trainer")

_ABSENT: Final = "%s was absent from update %d to %d: it %s."
_AFRESH: Final = "needs every update, so it starts afresh"
_GOES_ON: Final = "goes on from its state of update %d, and knows nothing of what came between"
_UNREAD: Final = (
    "%s has a state in the snapshot and does not read it: it starts fresh. Give it "
    "on_snapshot_load(self, state)."
)


@dataclass(frozen=True)
class CallbackStates:
    """The states that a run has of its callbacks beside the callbacks themselves.

    Attributes:
        loaded: state key -> state that a resume has found.
        carried: state key -> state of a callback that is not in this run, or was switched off in
            it, for later snapshots.
        carried_writers: state key -> what the manifest says of who wrote what is carried.
        last: state key -> the last state of a callback that may be switched off, and its update.
    """

    loaded: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)
    carried_writers: dict[str, Any] = field(default_factory=dict)
    last: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def remember(self, plugin: Plugin, state: Mapping[Any, Any], update: int) -> None:
        """Keeps a copy of `state` where the callback may be switched off."""
        if not plugin.critical:
            self.last[plugin.state_key] = (to_plain(state), update)

    def collect(self, callbacks: CallbackManager, trainer: TrainerProtocol) -> dict[str, Any]:
        """Returns state key -> state of every callback, for a snapshot, and what is carried along;
        of one that was switched off that is its last state, for a run in which it works again.

        Raises:
            CallbackError: a callback failed, or its state cannot be saved.
        """
        epoch, step = trainer.epoch, trainer.step
        states: dict[str, Any] = {}
        for plugin, answer in callbacks.ask_state(trainer=trainer, epoch=epoch, step=step):
            key = plugin.state_key
            try:
                states[key] = to_plain_state(answer, key, copy_tensors=False)
                self.remember(plugin, states[key], step)
            except StateError as error:
                callbacks.caught(plugin, "on_snapshot_save", error)
        callbacks.finish()
        for plugin in callbacks.plugins:
            key = plugin.state_key
            if plugin.name in callbacks.switched_off and key in self.last:
                self.carried[key], update = self.last[key]
                self.carried_writers[key] = {**describe_writer(plugin), "update": update}
        return {**states, **self.carried}


def load_states(
    saved: Mapping[str, Any],
    writers: Mapping[str, Any],
    callbacks: CallbackManager,
    update: int,
) -> CallbackStates:
    """Returns the states of a snapshot as this run goes on with them, and logs a table of what
    becomes of each.

    Args:
        saved: state key -> state, of the snapshot.
        writers: state key -> what the manifest says of who wrote it.
        callbacks: those of this run.
        update: that of the snapshot. A state that was carried along belongs to an earlier one.

    Raises:
        PluginError: a callback cannot read what was saved under its key; the first one's.
    """
    saved, writers = rename_states(callbacks.plugins, saved, writers)
    present = {plugin.state_key: plugin for plugin in callbacks.plugins}
    keeping = callbacks.implementers("on_snapshot_save")  # the table has no others
    wanted = {"checkpoint", "state"}
    reading = callbacks.askers("on_snapshot_load", wanted) | callbacks.askers("on_setup", wanted)
    states = CallbackStates()
    rows: list[tuple[str, str]] = []
    refusals: list[PluginError] = []
    for key in [*present, *sorted(set(saved) - set(present))]:
        plugin, writer = present.get(key), {"update": update, **writers.get(key, {})}
        who = plugin.label if plugin is not None else _describe_absent(key, writer)
        try:
            state, verdict = read_saved_state(plugin, saved.get(key), writer, update)
        except PluginError as error:
            refusals.append(error)
            rows.append((who, "refused"))
            continue
        if state is not None:
            states.loaded[key] = state
        if plugin is None:
            states.carried[key], states.carried_writers[key] = state, writer
            logger.warning(
                "the snapshot has state of %s, which is not in this run: it is carried along.", who
            )
        elif key in saved:
            _warn_absence(who, writer["update"], update, is_lost=state is None)
        if plugin is not None and state is not None:
            states.remember(plugin, state, writer["update"])
            if plugin.name not in reading:
                verdict = "not read"
                logger.warning(_UNREAD, who)
        if state is not None or present[key].name in keeping:
            rows.append((who, verdict))
    _log(rows)
    _raise_first(refusals)
    return states


def _raise_first(refusals: list[PluginError]) -> None:
    for other in refusals[1:]:
        logger.error("%s", other)
    try:
        if refusals:
            raise refusals[0]
    finally:
        refusals.clear()  # the traceback has this frame


def _warn_absence(who: str, last: int, update: int, *, is_lost: bool) -> None:
    if last < update:
        goes_on = _AFRESH if is_lost else _GOES_ON % last
        logger.warning(_ABSENT, who, last, update, goes_on)


def _describe_absent(key: str, writer: Mapping[str, Any]) -> str:
    origin = f"{writer.get('distribution', '')} {writer.get('version', '')}".strip()
    return f"{key} ({origin})" if origin else key


def _log(rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    width = max(len(who) for who, _ in rows)
    lines = [f"  {who.ljust(width)}  {verdict}" for who, verdict in rows]
    logger.info("%s", "\n".join(["state of the callbacks:", *lines]))
