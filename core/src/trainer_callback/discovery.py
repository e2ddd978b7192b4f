"""Entry points -> a list, without importing a plugin. The only room that reads installed
metadata.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import importlib_metadata

__all__ = [
    "GROUP",
    "Distribution",
    "Entry",
    "canonical",
    "find_distribution",
    "find_entries",
    "find_version",
]

GROUP: Final = "trainer.callbacks"


@dataclass(frozen=True)
class Entry:
    """One entry point of the group, as installed.

    Attributes:
        name: the entry point's name, which is the plugin's name and its activating flag.
        value: `module` or `module:attribute`.
        distribution: the distribution's name, as pip shows it.
        version: the distribution's version.
        problem: why it is not to be used, one sentence or `blocked by ...`; or None.
        blocked: the problem is somebody's wish.
    """

    name: str
    value: str
    distribution: str
    version: str
    problem: str | None = None
    blocked: bool = False

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        origin = f"{self.distribution} {self.version}" if self.distribution else self.value
        return f"{self.name} ({origin})"

    @property
    def flag(self) -> str:
        """The name as a flag, without dashes."""
        return canonical(self.name)

    def load(self) -> object:
        """Imports the plugin and returns what the entry point names."""
        return importlib_metadata.EntryPoint(self.name, self.value, GROUP).load()

    def find_loaded(self) -> object:
        """Returns what the entry point names if its module is imported already, else None."""
        module, _, attribute = self.value.partition("[")[0].replace(" ", "").partition(":")
        found: Any = sys.modules.get(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part, None)
        return found


@dataclass(frozen=True)
class Distribution:
    """What the metadata of an installed distribution says.

    Attributes:
        name, version, summary: as pip shows them.
        links: label -> address: documentation, home page and so on.
        requires: its requirements, as written.
    """

    name: str
    version: str
    summary: str
    links: dict[str, str]
    requires: tuple[str, ...]


def find_entries(blocked: Iterable[str] = ()) -> list[Entry]:
    """Returns every installed plugin by name, the unusable ones with their `problem`; imports none
    of them. The order does not depend on what was installed first.

    Args:
        blocked: names blocked by the caller, beside those that the environment blocks:
            `TRAINER_DISABLE_PLUGIN_AUTOLOAD=1` (all), `TRAINER_DISABLE_PLUGINS=a,b`,
            `TRAINER_PLUGINS=a,b` (all but these). A variable that is empty counts as not set.
    """
    is_blocked = _read_blocking(frozenset(canonical(name) for name in blocked))
    owners: dict[str, Entry] = {}
    entries = []
    for entry in sorted(_read_entries(), key=lambda e: (e.flag, e.distribution, e.value)):
        owner = owners.setdefault(entry.flag, entry)
        block = is_blocked(entry.flag)
        if block is not None:
            entries.append(replace(entry, problem=block, blocked=True))
        elif owner is not entry and entry.problem is None:
            taken = (
                f"{entry.label}: the name is taken by {owner.distribution} {owner.version}. "
                "Uninstall one of the two."
            )
            entries.append(replace(entry, problem=taken))
        else:
            entries.append(entry)
    return entries


def find_version(distribution: str) -> str:
    """Returns the installed version of `distribution`, or an empty string for code that runs
    without being installed.
    """
    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ""


def find_distribution(name: str) -> Distribution | None:
    """Returns the metadata of the installed distribution `name`, or None."""
    try:
        found = importlib_metadata.distribution(name)
    except (importlib_metadata.PackageNotFoundError, ValueError):
        return None
    metadata = found.metadata
    links = {}
    for line in metadata.get_all("Project-URL") or ():
        label, _, address = line.partition(",")
        links[label.strip()] = address.strip()
    if metadata.get("Home-page"):
        links.setdefault("Homepage", metadata["Home-page"])
    return Distribution(
        found.name, found.version, metadata.get("Summary", ""), links, tuple(found.requires or ())
    )


def canonical(name: str) -> str:
    """Returns a plugin's name as it is compared, and spelt in flags: `my-plugin` is `my_plugin`."""
    return re.sub(r"\W", "_", name.strip())


def _read_entries() -> Iterator[Entry]:
    for point in _read_points():
        name, version = _read_origin(point.dist)
        problem = None
        if not name or not version:
            problem = (
                f"entry point {point.name!r} ({point.value}): the metadata of its distribution "
                "cannot be read. Install it again."
            )
        yield Entry(point.name, point.value, name, version, problem)


def _read_origin(distribution: Any) -> tuple[str, str]:
    try:
        return distribution.name or "", distribution.version or ""
    except Exception:  # a foreign file: whatever the parser of its metadata makes of it
        return "", ""


def _read_points() -> Iterable[Any]:
    try:
        return importlib_metadata.entry_points(group=GROUP)
    except Exception:  # one damaged entry_points.txt, of whatever package, spoils the whole answer
        return _read_points_one_by_one()


def _read_points_one_by_one() -> Iterator[Any]:
    seen = set()
    for distribution in importlib_metadata.distributions():
        try:
            points = tuple(distribution.entry_points.select(group=GROUP))
        except Exception:  # the damaged one
            continue
        name, _ = _read_origin(distribution) if points else ("", "")
        if name not in seen or not name:  # the first on the path is the one that is imported
            seen.add(name)
            yield from points


def _names(variable: str) -> frozenset[str]:
    names = os.environ.get(variable, "").split(",")
    return frozenset(canonical(name) for name in names if name.strip())


def _read_blocking(blocked: frozenset[str]) -> Callable[[str], str | None]:
    autoload_off = os.environ.get("TRAINER_DISABLE_PLUGIN_AUTOLOAD", "") not in ("", "0")
    denied = _names("TRAINER_DISABLE_PLUGINS")
    allowed = _names("TRAINER_PLUGINS")

    def why(name: str) -> str | None:
        if name in blocked:
            return "blocked by --no_plugin"
        if autoload_off:
            return "blocked by TRAINER_DISABLE_PLUGIN_AUTOLOAD"
        if name in denied:
            return "blocked by TRAINER_DISABLE_PLUGINS"
        if allowed and name not in allowed:
            return "blocked by TRAINER_PLUGINS, which does not name it"
        return None

    return why
