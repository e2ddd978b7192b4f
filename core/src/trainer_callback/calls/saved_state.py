"""Whose state a snapshot holds, and whether the callback of this run can have it.

A snapshot's manifest says of each state key who wrote it: `describe_writer`. A resume reads that
back: `read_saved_state`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PluginError
from .identity import Plugin
from .implementation import describe

__all__ = ["describe_writer", "read_saved_state", "rename_states"]


def describe_writer(plugin: Plugin) -> dict[str, Any]:
    """Returns what a manifest says of the callback that wrote a state: plain JSON."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "state_version": plugin.state_version,
    }


def rename_states(
    plugins: Sequence[Plugin], saved: Mapping[str, Any], writers: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what a snapshot has, by today's keys: a callback that finds nothing under its own one
    gets what stands under one of its `state_key_aliases`, if that is no other callback's key.

    Args:
        plugins: those of this run.
        saved: state key -> state.
        writers: state key -> what the manifest says of who wrote it.
    """
    states, origins = dict(saved), dict(writers)
    present = {plugin.state_key for plugin in plugins}
    for plugin in plugins:
        free = (each for each in plugin.state_key_aliases if each in states and each not in present)
        key, old = plugin.state_key, next(free, None)
        if old is not None and key not in states:
            states[key] = states.pop(old)
            if old in origins:
                origins[key] = origins.pop(old)
    return states, origins


def read_saved_state(
    plugin: Plugin | None, saved: Mapping[str, Any] | None, writer: Mapping[str, Any], update: int
) -> tuple[Mapping[str, Any] | None, str]:
    """Returns the state that `plugin` is to get of what was saved under its key, and the verdict:
    it is `restored` as it is, or `migrated` by `migrate_state`; the callback starts `fresh`; or it
    is not in this run, and its state is `carried along` into later snapshots.

    Args:
        plugin: the callback of this run that has the state key; None where there is none.
        saved: the state under the key; None where there is none.
        writer: what the manifest says of who wrote it, as `describe_writer` made it. Of an older
            manifest, without `state_version`, the version is 1; without `update`, that is `update`.
        update: that of the snapshot; an earlier one in `writer` is when the callback was last seen.

    Raises:
        PluginError: the state is another distribution's, or is newer than the plugin, or is older
            and cannot be migrated.
    """
    if saved is None:
        return None, "fresh"
    if plugin is None:
        return saved, "carried along"
    written = writer.get("update", update)
    if plugin.needs_every_update and written < update:
        return None, f"fresh: its state is of update {written}, and it was absent until {update}"
    old, new = _read_versions(plugin, writer)
    age = f", from update {written} of {update}" if written < update else ""
    if old == new:
        return saved, "restored" + age
    return _migrate(plugin, saved, old, new), "migrated" + age


def _read_versions(plugin: Plugin, writer: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the version of the state in the snapshot, and that which the plugin has."""
    distribution = writer.get("distribution") or plugin.distribution
    if plugin.distribution and distribution != plugin.distribution:
        raise PluginError(
            f"{plugin.label}: the snapshot's state {plugin.state_key!r} was written by "
            f"{distribution} {writer.get('version', '')}. Use that plugin, or give this one "
            "another `state_key`, and it starts fresh."
        )
    old, new = int(writer.get("state_version", 1)), plugin.state_version
    if old > new:
        raise PluginError(
            f"{plugin.label} reads state of version {new}, and the snapshot has version {old}, "
            f"written by {distribution or plugin.name} {writer.get('version', '')}. Upgrade the "
            "plugin to that version."
        )
    return old, new


def _migrate(plugin: Plugin, saved: Mapping[str, Any], old: int, new: int) -> Mapping[str, Any]:
    what = f"{plugin.label} cannot read the snapshot's state of version {old}; it has {new}"
    migrate = getattr(plugin.callback, "migrate_state", None)
    if migrate is None:
        raise PluginError(f"{what} and no `migrate_state`.")
    try:
        state = migrate(copy.deepcopy(saved), old)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(state, Mapping):
        raise PluginError(f"{what}: migrate_state returned {describe(state)}, not a dict.")
    return state
