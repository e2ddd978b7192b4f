"""Entry points -> a list, without importing a plugin. The only room that reads installed
metadata.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import importlib_metadata

__all__ = ["GROUP", "Entry", "find_entries", "find_version"]

GROUP: Final = "trainer.callbacks"


@dataclass(frozen=True)
class Entry:
    """One entry point of the group, as installed.

    Attributes:
        name: the entry point's name, which is the plugin's name and its activating flag.
        value: `module` or `module:attribute`.
        distribution: the distribution's name, as pip shows it.
        version: the distribution's version.
        problem: why it is not to be used (`blocked by ...`, `its name is taken by ...`), or None.
    """

    name: str
    value: str
    distribution: str
    version: str
    problem: str | None = None

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        origin = f"{self.distribution} {self.version}" if self.distribution else self.value
        return f"{self.name} ({origin})"

    def load(self) -> object:
        """Imports the plugin and returns what the entry point names."""
        return importlib_metadata.EntryPoint(self.name, self.value, GROUP).load()


def find_entries(blocked: Iterable[str] = ()) -> list[Entry]:
    """Returns every installed plugin by name, the unusable ones with their `problem`; imports none
    of them.

    Args:
        blocked: names blocked by the caller, beside those that the environment blocks:
            `TRAINER_DISABLE_PLUGIN_AUTOLOAD=1` (all),
            `TRAINER_DISABLE_PLUGINS=a,b`, `TRAINER_PLUGINS=a,b` (all but these).
    """
    is_blocked = _read_blocking(frozenset(_canonical(name) for name in blocked))
    found = sorted(
        (
            Entry(point.name, point.value, point.dist.name, point.dist.version)
            for point in importlib_metadata.entry_points(group=GROUP)
            if point.dist is not None
        ),
        key=lambda entry: (entry.name, entry.distribution),
    )
    owners: dict[str, Entry] = {}
    entries = []
    for entry in found:
        owner = owners.setdefault(_canonical(entry.name), entry)
        problem = is_blocked(_canonical(entry.name))
        if problem is None and owner is not entry:
            problem = f"its name is taken by {owner.distribution} {owner.version}"
        entries.append(Entry(entry.name, entry.value, entry.distribution, entry.version, problem))
    return entries


def find_version(distribution: str) -> str:
    """Returns the installed version of `distribution`, or an empty string for code that runs
    without being installed.
    """
    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ""


def _canonical(name: str) -> str:
    return name.strip().replace("-", "_")


def _names(variable: str) -> frozenset[str] | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    return frozenset(_canonical(name) for name in text.split(",") if name.strip())


def _read_blocking(blocked: frozenset[str]) -> Callable[[str], str | None]:
    autoload_off = os.environ.get("TRAINER_DISABLE_PLUGIN_AUTOLOAD", "") not in ("", "0")
    denied = _names("TRAINER_DISABLE_PLUGINS") or frozenset()
    allowed = _names("TRAINER_PLUGINS")

    def why(name: str) -> str | None:
        if name in blocked:
            return "blocked by --no_plugin"
        if autoload_off:
            return "blocked by TRAINER_DISABLE_PLUGIN_AUTOLOAD"
        if name in denied:
            return "blocked by TRAINER_DISABLE_PLUGINS"
        if allowed is not None and name not in allowed:
            return "blocked by TRAINER_PLUGINS, which does not name it"
        return None

    return why
