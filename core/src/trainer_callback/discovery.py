"""Entry points -> a list, without importing a plugin; no other room reads installed metadata."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import importlib_metadata

from .errors import PluginError, text_of

__all__ = [
    "GROUP",
    "Distribution",
    "Entry",
    "canonical",
    "explain_import",
    "find_distribution",
    "find_entries",
    "find_functions",
    "find_version",
    "read_names",
    "read_wheel",
]

GROUP: Final = "trainer.callbacks"
_MOST_METADATA: Final = 1 << 20
"""Bytes of a file of a wheel's metadata: a small archive may hold what fills the memory."""

_LENGTH: Final = 500
"""Characters of an error of somebody's import that are shown."""


@dataclass(frozen=True)
class Entry:
    """One entry point of the group, as installed.

    Attributes:
        name: the entry point's name, which is the plugin's name and its activating flag.
        value: `module` or `module:attribute`.
        distribution: the distribution's name, as pip shows it.
        version: the distribution's version.
        problem: why it is not to be used, one sentence or `blocked by ...`; or None.
        blocked: the user, or the environment, blocks it.
        is_ambiguous: the problem is another distribution's plugin of the same name.
    """

    name: str
    value: str
    distribution: str
    version: str
    problem: str | None = None
    blocked: bool = False
    is_ambiguous: bool = False

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        origin = f"{self.distribution} {self.version}" if self.distribution else self.value
        return f"{self.name} ({origin})"

    @property
    def flag(self) -> str:
        """The name as a flag, without dashes."""
        return canonical(self.name)

    @property
    def full_name(self) -> str:
        """`DISTRIBUTION:NAME`, which no other plugin has."""
        return f"{self.distribution}:{self.flag}"

    def is_called(self, name: str) -> bool:
        """Whether `name` is its name, or its `DISTRIBUTION:NAME`."""
        distribution, colon, own = name.strip().partition(":")
        if colon and _normalize(distribution) == _normalize(self.distribution):
            return canonical(own) == self.flag
        return canonical(name) == self.flag

    def load(self) -> object:
        """Imports the plugin and returns what the entry point names.

        Raises:
            ImportError: it names nothing that could be imported.
        """
        if not re.fullmatch(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\]\s*)?", self.value):
            raise ImportError(f"{self.value!r} is neither MODULE nor MODULE:CLASS")
        return importlib_metadata.EntryPoint(self.name, self.value, GROUP).load()

    def find_loaded(self) -> object:
        """Returns what the entry point names if its module is imported already, else None."""
        module, _, attribute = self.value.partition("[")[0].replace(" ", "").partition(":")
        found: Any = sys.modules.get(module)
        try:
            for part in filter(None, attribute.split(".")):
                found = getattr(found, part, None)
        except Exception:  # a module's own `__getattr__` may do anything
            return None
        return found


@dataclass(frozen=True)
class Distribution:
    """What the metadata of an installed distribution says.

    Attributes:
        name, version, summary: as pip shows them.
        links: label -> address: documentation, home page and so on.
        requires: its requirements, as written.
        is_private: by a classifier, so that no package index has it.
    """

    name: str
    version: str
    summary: str
    links: dict[str, str]
    requires: tuple[str, ...]
    is_private: bool = False


def find_entries(blocked: Iterable[str] = ()) -> list[Entry]:
    """Returns every installed plugin by name, the unusable ones with their `problem`; imports none
    of them. The order does not depend on what was installed first.

    Args:
        blocked: names blocked by the caller, beside those that the environment blocks:
            `TRAINER_DISABLE_PLUGIN_AUTOLOAD=1` (all), `TRAINER_DISABLE_PLUGINS=a,b`,
            `TRAINER_PLUGINS=a,b` (all but these). A variable that is empty counts as not set. A
            name may be `DISTRIBUTION:NAME`.
    """
    is_blocked = _read_blocking(tuple(blocked))
    entries = []
    for entry in sorted(set(_read_entries()), key=lambda e: (e.flag, e.distribution, e.value)):
        block = is_blocked(entry)
        entries.append(entry if block is None else replace(entry, problem=block, blocked=True))
    usable: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.problem is None:
            usable.setdefault(entry.flag, []).append(entry)
    return [_compare(entry, usable.get(entry.flag, ())) for entry in entries]


def _compare(entry: Entry, rivals: Sequence[Entry]) -> Entry:
    """Returns `entry`, which cannot be used where another of the usable ones has its name.

    Args:
        rivals: all usable ones of its name, itself included.
    """
    if entry.problem is not None or len(rivals) < 2:
        return entry
    names = " and ".join(each.label for each in rivals)
    if len({_normalize(each.distribution) for each in rivals}) < len(rivals):
        values = " and ".join(repr(each.value) for each in rivals)
        problem = (
            f"the entry point {entry.name!r} is there more than once: {names}, for {values}. "
            f"Uninstall it: pip uninstall {entry.distribution}"
        )
        return replace(entry, problem=problem)
    leave_out = " or ".join(f"TRAINER_DISABLE_PLUGINS={each.full_name}" for each in rivals)
    problem = (
        f"{len(rivals)} installed plugins have the name {entry.name!r}: {names}. Say which is to "
        f"be left out: {leave_out}; train-lm has --no_plugin {entry.full_name} for it."
    )
    return replace(entry, problem=problem, is_ambiguous=True)


def find_functions(group: Literal["trainer.commands", "trainer.hosts"]) -> list[Entry]:
    """Returns every installed sub-command of `trainer`, or every other trainer that takes plugins,
    by name; imports none of them. `load` of one gives its function.
    """
    found = set(_read_entries(group))
    return sorted(found, key=lambda each: (each.name, each.distribution, each.value))


def find_version(distribution: str) -> str:
    """Returns the installed version of `distribution`, or an empty string for code that runs
    without being installed.
    """
    try:
        return _read_origin(importlib_metadata.distribution(distribution))[1]
    except importlib_metadata.PackageNotFoundError:
        return ""


def find_distribution(name: str) -> Distribution | None:
    """Returns the metadata of the installed distribution `name`, or None."""
    try:
        return _read_distribution(importlib_metadata.distribution(name))
    except (importlib_metadata.PackageNotFoundError, ValueError):
        return None


def read_wheel(path: Path) -> tuple[Distribution, list[Entry]]:
    """Returns the metadata of a wheel that is not installed, and the plugins that it would bring.

    Raises:
        PluginError: it is no wheel, or its metadata cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wheel = _Wheel(archive)
            found = _read_distribution(wheel)
            points = [point for point in wheel.entry_points if point.group == GROUP]
    except Exception as error:  # a foreign file: whatever the parsers make of it
        raise PluginError(f"{path.name} cannot be read: {text_of(error)}.") from error
    return found, [Entry(p.name, p.value, found.name, found.version) for p in points]


class _Wheel(importlib_metadata.Distribution):
    """The metadata in an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        folders = [n[:-9] for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        if len(folders) != 1:
            raise ValueError("it has no metadata, or that of several distributions")
        (self._folder,) = folders

    def read_text(self, filename: str) -> str | None:
        """Returns a file of the metadata, or None."""
        path = f"{self._folder}/{filename}"
        if path not in self._archive.namelist():
            return None
        with self._archive.open(path) as stream:
            content = stream.read(_MOST_METADATA + 1)
        if len(content) > _MOST_METADATA:
            raise ValueError(f"{filename} has more than {_MOST_METADATA:,} bytes")
        return content.decode("utf-8", "replace")

    def locate_file(self, path: Any) -> Any:
        return path  # nothing is read but metadata


def _read_distribution(found: Any) -> Distribution:
    metadata = found.metadata
    pairs = [line.partition(",") for line in metadata.get_all("Project-URL") or ()]
    given = {"Homepage": metadata.get("Home-page")}
    given.update({label.strip(): address.strip() for label, _, address in pairs})
    links = {label: address for label, address in given.items() if address}
    private, requires = str(metadata.get_all("Classifier")), tuple(found.requires or ())
    words = (metadata.get("Summary", ""), links, requires, "Private ::" in private)
    return Distribution(found.name, found.version, *words)


def read_names(variable: str) -> list[str]:
    """Returns the names of plugins that an environment variable lists."""
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def canonical(name: str) -> str:
    """Returns a plugin's name as it is compared, and spelt in flags: `my-plugin` is `my_plugin`."""
    return re.sub(r"\W", "_", name.strip())


def _read_entries(group: str = GROUP) -> Iterator[Entry]:
    for point in _read_points(group):
        name, version = _read_origin(point.dist)
        unreadable = (
            f"entry point {point.name!r} ({point.value}): the metadata of its distribution "
            "cannot be read. Install it again."
        )
        problem = None if name and version else unreadable
        yield Entry(point.name, point.value, name, version, problem)


def _read_origin(distribution: Any) -> tuple[str, str]:
    try:
        head = _read_head(distribution.read_text("METADATA") or "")
        if "name" in head and "version" in head:  # a quarter of what its own parser takes
            return head["name"], head["version"]
        return distribution.name or "", distribution.version or ""
    except Exception:  # a foreign file: whatever the parser of its metadata makes of it
        return "", ""


def _read_head(text: str) -> dict[str, str]:
    """Returns key -> value of the head of some metadata, the first of each key."""
    head: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break
        key, colon, value = line.partition(":")
        if colon:
            head.setdefault(key.lower(), value.strip())
    return head


def _read_points(group: str) -> Iterable[Any]:
    try:
        return importlib_metadata.entry_points(group=group)
    except Exception:  # one damaged entry_points.txt, of whatever package, spoils the whole answer
        return _read_points_one_by_one(group)


def _read_points_one_by_one(group: str) -> Iterator[Any]:
    seen = set()
    for distribution in importlib_metadata.distributions():
        try:
            points = tuple(distribution.entry_points.select(group=group))
        except Exception:  # the damaged one
            continue
        name, _ = _read_origin(distribution) if points else ("", "")
        if name not in seen or not name:  # the first on the path is the one that is imported
            seen.add(name)
            yield from points


def _normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _read_blocking(blocked: Sequence[str]) -> Callable[[Entry], str | None]:
    autoload_off = os.environ.get("TRAINER_DISABLE_PLUGIN_AUTOLOAD", "") not in ("", "0")
    denied = read_names("TRAINER_DISABLE_PLUGINS")
    allowed = read_names("TRAINER_PLUGINS")

    def why(entry: Entry) -> str | None:
        if any(map(entry.is_called, blocked)):
            return "blocked by --no_plugin"
        if autoload_off:
            return "blocked by TRAINER_DISABLE_PLUGIN_AUTOLOAD"
        if any(map(entry.is_called, denied)):
            return "blocked by TRAINER_DISABLE_PLUGINS"
        if allowed and not any(map(entry.is_called, allowed)):
            return "blocked by TRAINER_PLUGINS, which does not name it"
        return None

    return why


def explain_import(entry: Entry, error: BaseException) -> str:
    """Returns why the plugin could not be imported, on one line."""
    text = " ".join(text_of(error).split())
    if isinstance(error, PluginError):
        return f"{entry.label}: {text}"
    if len(text) > _LENGTH:
        text = f"{text[:_LENGTH]} ..."
    what = f"{type(error).__name__}: {text}"
    if not entry.distribution:
        return f"{entry.value} could not be imported: {what}."
    return (
        f"entry point {entry.name!r} of {entry.distribution} {entry.version} could not be "
        f"imported: {what}. Its options are missing."
    )
