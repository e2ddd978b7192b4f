"""The installed plugins: all of them, the live ones, one by its name, and which of them a command
line can have.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .calls.extensions import join_hooks
from .calls.identity import Plugin
from .calls.order import arrange
from .command_line.description import Description
from .command_line.installed import InstalledPlugin
from .command_line.plugin_cache import describe_entries, read_descriptions
from .discovery import Entry, canonical, find_entries
from .errors import PluginError, closest
from .hookspecs import TrainerCallback

__all__ = [
    "SLOW_IMPORT",
    "InstalledPlugin",
    "create",
    "describe_installed",
    "discover",
    "exclude_unusable",
    "explain_slow",
    "find_live",
    "load_used",
    "not_installed",
    "read_one_off",
]

logger: logging.Logger = logging.getLogger("trainer")

SLOW_IMPORT: Final = 3.0
"""Seconds of a plugin's import from which on it is worth a word."""

_NO_TIME: Final = 0.1
"""Seconds of an import that nobody notices."""


def discover(blocked: Iterable[str] = ()) -> list[InstalledPlugin]:
    """Returns every installed plugin by name, loaded unless blocked. Nothing is printed."""
    plugins = [InstalledPlugin(entry) for entry in find_entries(blocked)]
    for plugin in plugins:
        plugin.know_hooks(plugins)
    return plugins


def describe_installed(entries: Sequence[Entry], *, anew: bool = False) -> list[InstalledPlugin]:
    """Returns the plugins of `entries`. None is imported here whose description is kept from
    an earlier call, but those that can be asked in no time: what is broken, or adds options of its
    own, may answer otherwise than it did.

    Args:
        anew: none of the descriptions that are kept is used, and nothing is imported here.
    """
    usable = [entry for entry in entries if entry.problem is None or entry.is_ambiguous]
    known = dict(zip(usable, describe_entries(usable, anew=anew), strict=True))
    plugins = [InstalledPlugin(entry, description=known.get(entry)) for entry in entries]
    for plugin in plugins:
        found = plugin.description
        if found is not None and not anew and _is_asked_again(found):
            plugin.load()
    _join_hooks(plugins)
    return plugins


def _join_hooks(plugins: Sequence[InstalledPlugin]) -> None:
    """Imports those that bring hooks to others, and those others, which are judged together."""
    known = [(plugin, plugin.description) for plugin in plugins]
    wanted = any(p.unknown is not None if d is None else d.needs_others for p, d in known)
    for plugin, found in known:
        if found is not None and (
            found.needs_others or (found.brings and (wanted or found.kind == "live"))
        ):
            plugin.load()
    for plugin in plugins:
        plugin.know_hooks(plugins)


def _is_asked_again(found: Description) -> bool:
    changes = found.kind == "broken" or "add_options" in found.set_up
    return changes and found.seconds < _NO_TIME and not found.brings_torch


def load_used(plugins: Iterable[InstalledPlugin], given: Collection[str], *, runs: bool) -> None:
    """Imports the plugins that `given` options are of, and those that are asked in every run.

    Args:
        given: words that somebody has given, `--flag` and others.
        runs: the command trains, or does all but that.
    """
    short = {word[:2] for word in given if word[:1] == "-" and word[1:2] != "-"}
    for plugin in plugins:
        known = plugin.description
        if known is None:
            continue
        flags = {flag for action in known.actions for flag in action["flags"]}
        in_every_run = known.kind != "broken" and (bool(known.set_up) or plugin.is_callback)
        if plugin.is_named(given) or flags & {*given, *short} or (runs and in_every_run):
            plugin.load()


def explain_slow(plugin: InstalledPlugin) -> str | None:
    """Returns a sentence where the import of `plugin` takes long, or brings torch, else None."""
    known = plugin.description
    torch = known is not None and known.brings_torch
    if plugin.seconds <= SLOW_IMPORT and not torch:
        return None
    return (
        f"the import of {plugin.label} took {plugin.seconds:.1f} s"
        f"{' and brings torch' if torch else ''}. Its author can import in the hooks what takes "
        f"long; --no_plugin {plugin.entry.flag} leaves it out."
    )


def find_live(blocked: Iterable[str] = ()) -> list[Plugin]:
    """Returns the modules and objects that are live in every run; warns of each plugin that could
    not be loaded.
    """
    live = []
    entries = find_entries(blocked)
    usable = [entry for entry in entries if entry.problem is None or entry.is_ambiguous]
    known = dict(zip(usable, read_descriptions(usable), strict=True))
    plugins = [InstalledPlugin(entry, description=known.get(entry)) for entry in entries]
    load_used(plugins, (), runs=True)
    _join_hooks(plugins)
    _exclude_live_conflicts(plugins)
    for plugin in plugins:
        if plugin.kind == "broken" and plugin.matters:
            logger.warning("%s", plugin.problem)
        elif plugin.is_callback:
            plugin.tell_changes()
            live.append(plugin.record)
    return live


def exclude_unusable(
    plugins: Sequence[InstalledPlugin], taken: Mapping[str, str], given: Collection[str] = ()
) -> None:
    """Excludes each plugin that cannot be in a run with those before it, or whose options a
    command line cannot have: they are wrong by themselves, or clash with the command's or with
    those of a plugin before it. Whoever is asked for comes before the others.

    Args:
        taken: the command's own options: flag -> where its value goes.
        given: the options that somebody has given, as `--flag`.
    """
    _exclude_live_conflicts(plugins)
    owners: dict[str, InstalledPlugin] = {}
    flags, given = dict(taken), set(given) - taken.keys()
    setters = {place: flag for flag, place in flags.items()}
    usable = [plugin for plugin in plugins if plugin.problem is None]
    for plugin in sorted(usable, key=lambda plugin: not plugin.is_named(given)):
        plugin.is_requested = plugin.is_named(given)
        try:
            group = plugin.group
        except PluginError as error:
            plugin.exclude(str(error))
            continue
        plugin.is_requested |= bool(group.flags.keys() & given - flags.keys())
        clash = group.find_clash(flags, setters)
        if clash is None:
            flags.update(group.flags)
            setters.update({place: flag for flag, place in group.flags.items()})
            owners.update(dict.fromkeys(group.flags, plugin))
        elif clash in owners:
            plugin.exclude(
                f"{owners[clash].label} and {plugin.label} both add {clash}. Leave one of them "
                f"out: --no_plugin {owners[clash].entry.flag} or --no_plugin {plugin.entry.flag}."
            )
        else:
            plugin.exclude(f"{plugin.label} adds {clash}, which is an option of the program.")


def _exclude_live_conflicts(plugins: Sequence[InstalledPlugin]) -> None:
    """Excludes what is live in every run and cannot be there with those before it."""
    kept: list[Plugin] = []
    for plugin in plugins:
        if not plugin.is_callback:
            continue
        record, plugin.is_requested = plugin.record, False
        other = next((each for each in kept if each.state_key == record.state_key), None)
        try:
            arrange([*kept, record])
            join_hooks([*kept, record])
        except PluginError as error:
            plugin.exclude(str(error))
            continue
        if other is not None:
            plugin.exclude(
                f"{other.label} and {record.label} have the same state key {other.state_key!r}. "
                f"Leave one of them out: TRAINER_DISABLE_PLUGINS={canonical(other.name)} or "
                f"TRAINER_DISABLE_PLUGINS={plugin.entry.flag}."
            )
            continue
        kept.append(record)


def create(name: str, **options: Any) -> TrainerCallback:
    """Returns the callback of the installed plugin `name` (or `DISTRIBUTION:NAME`), made with
    `options`, for `Trainer(callbacks=[...])`.

    Raises:
        PluginError: there is no such plugin, or it cannot be used.
    """
    installed = find_entries()
    found = [entry for entry in installed if entry.is_called(name)]
    if not found:
        raise not_installed(name, installed)
    entry = next((entry for entry in found if not entry.blocked), found[0])
    if entry.is_ambiguous and ":" in name:
        entry = replace(entry, problem=None, is_ambiguous=False)
    plugin = InstalledPlugin(entry)
    if plugin.unknown is not None:
        plugin.know_hooks(discover())
    callback = plugin.create(**options).callback
    assert isinstance(callback, TrainerCallback)
    return callback


def not_installed(name: str, installed: Iterable[Entry]) -> PluginError:
    """Returns the refusal of a plugin's name, with those that there are."""
    names = sorted({entry.flag for entry in installed})
    return PluginError(
        f"no plugin {name!r} is installed.{closest(canonical(name), names)} Installed: "
        f"{', '.join(names) or 'none'}."
    )


def read_one_off(value: str, installed: Sequence[InstalledPlugin] = ()) -> InstalledPlugin:
    """Returns the plugin of `--callback MODULE:CLASS`, a module of the current directory that is
    not installed.

    Its name is the module's, without a leading `trainer_`.

    Args:
        value: MODULE:CLASS.
        installed: whose hooks it may implement.

    Raises:
        PluginError: it cannot be used.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    module, _, attribute = value.partition(":")
    module = module.removesuffix(".py")
    name = module.rpartition(".")[2].removeprefix("trainer_")
    entry = Entry(name, f"{module}:{attribute}" if attribute else module, "", "")
    plugin = InstalledPlugin(entry, active=True)
    plugin.know_hooks(installed)
    if plugin.problem is not None:
        raise PluginError(f"--callback {value}: {plugin.problem}")
    return plugin
