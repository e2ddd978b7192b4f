"""What a plugin does that works, and is hardly what its author meant: for the doctor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

from ..calls.implementation import describe, find_unmarked
from ..hookspecs import HOOKS, TrainerCallback
from .installed import InstalledPlugin

__all__ = ["find_oddities"]

_LONG: Final = 10
"""Letters of a name of a hook from which on two of them may be wrong; else one."""


def find_oddities(plugin: InstalledPlugin) -> list[list[str]]:
    """Returns what was found of a loaded plugin, each as a problem and an advice."""
    if plugin.problem is not None or plugin.target is None:
        return []
    return [*_find_untyped(plugin), *_find_versions(plugin), *_find_uncalled(plugin)]


def _find_untyped(plugin: InstalledPlugin) -> Iterator[list[str]]:
    if not isinstance(plugin.target, type):
        return
    parameters = inspect.signature(plugin.target).parameters
    bare = [
        each
        for each in plugin.options
        if each.parameter in parameters
        and parameters[each.parameter].annotation is inspect.Parameter.empty
    ]
    if bare:
        flags = ", ".join(f"--{each.flag}" for each in bare)
        problem = f"{plugin.label}: its options {flags} have no type, so they take any text."
        advice = f"its author can annotate them, such as {bare[0].parameter}: int"
        yield [problem, advice]


def _find_versions(plugin: InstalledPlugin) -> Iterator[list[str]]:
    own = inspect.getattr_static(plugin.target, "migrate_state", None)
    migrates = own is not None and own is not vars(TrainerCallback)["migrate_state"]
    version = getattr(plugin.target, "state_version", 1)
    if migrates and version == 1:
        problem = f"{plugin.label} has migrate_state, and its state has no version above 1."
        advice = "nobody calls it; its author can set state_version = 2, and raise it by 1 with "
        yield [problem, f"{advice}each new form of the state"]
    elif version != 1 and not migrates and "on_snapshot_save" in plugin.hooks:
        problem = (
            f"{plugin.label} has state of version {version} and no migrate_state, so a snapshot "
            "with an older one cannot be resumed."
        )
        yield [problem, "its author can write migrate_state(self, state, old_version)"]


def _find_uncalled(plugin: InstalledPlugin) -> Iterator[list[str]]:
    """Functions of a module, or of an object that is no TrainerCallback, whose names are those of
    hooks, or nearly so.
    """
    marked = {each.attribute for each in plugin.implementations}
    meant = {name: _find_meant(name) for name in dir(plugin.target) if name not in marked}
    names = [name for name, hook in meant.items() if hook is not None]
    for where in find_unmarked(plugin.target, names):
        name = where.rpartition(".")[2]
        what = "" if name == meant[name] else f", which is nearly {meant[name]},"
        problem = f"{plugin.label}: {where}{what} is not marked with @hookimpl, so nobody calls it."
        advice = "its author can mark it, or begin its name with an underscore"
        if what:
            advice = f"its author can call it {meant[name]} and mark it, or begin its name with _"
        elif not inspect.ismodule(plugin.target):
            advice += f"; or let {describe(plugin.target)} inherit from TrainerCallback"
        yield [problem, advice]


def _find_meant(name: str) -> str | None:
    """Returns the hook of that name, or the one that differs in a letter or two, or None."""
    if name in HOOKS:
        return name
    if name.startswith("_"):
        return None
    for hook in HOOKS:
        most = 2 if len(hook) >= _LONG else 1
        if abs(len(name) - len(hook)) <= most and _count_changes(name, hook) <= most:
            return hook
    return None


def _count_changes(one: str, other: str) -> int:
    """Returns how many letters have to be added, left out or changed to make `other` of `one`."""
    before = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        row: list[int] = [number]
        for place, wanted in enumerate(other, 1):
            change = before[place - 1] + (letter != wanted)
            row.append(min(change, before[place] + 1, row[-1] + 1))
        before = row
    return before[-1]
