"""`trainer plugins index`: what there is of plugins, here and in a folder of wheels, as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from trainer.snapshots.durable import replace_file
from trainer_callback import PluginError, UsageError
from trainer_callback.command_line.describing import describe
from trainer_callback.discovery import Distribution, Entry, find_distribution, read_wheel
from trainer_callback.plugins import InstalledPlugin

from .commands import find_added
from .index_page import MARK, render_index
from .plugin_levels import read_level

__all__ = ["list_index", "write_index"]

_HEAD = 1024


def list_index(plugins: Sequence[InstalledPlugin], folder: Path | None) -> list[dict[str, Any]]:
    """Returns what is known of each plugin, by name: the installed ones, the commands that they
    add, and the plugins in the wheels of `folder`, whose hooks and options nobody knows (None).

    Raises:
        UsageError: `folder` cannot be read.
    """
    rows = [_describe(plugin) for plugin in plugins]
    rows += [_describe_command(entry) for entry in find_added()]
    known = {(canonicalize_name(row["distribution"]), row["version"]) for row in rows}
    if folder is not None:
        rows += [
            row
            for row in _read_wheels(folder)
            if (canonicalize_name(row["distribution"]), row["version"]) not in known
        ]
    return sorted(rows, key=lambda row: (row["name"].lower(), row["distribution"], row["version"]))


def write_index(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """Writes the page.

    Raises:
        UsageError: it cannot be written, or something else is there.
    """
    try:
        if target.exists() and not (target.is_file() and _is_page(target)):
            raise UsageError(
                f"{str(target)!r} is there already, and no page of this command. Move it away, or "
                "name another: --output PAGE."
            )
        replace_file(target, render_index(rows).encode())
    except OSError as error:
        raise UsageError(f"{str(target)!r} cannot be written: {error.strerror}.") from error


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(_HEAD)


def _describe(plugin: InstalledPlugin) -> dict[str, Any]:
    known = describe(plugin)
    return {
        **_row(plugin.entry, plugin.kind, plugin.problem),
        **_read_metadata(find_distribution(plugin.entry.distribution)),
        "hooks": plugin.hooks,
        "brings": known.brings,
        "options": known.rows,
        "level": read_level(plugin.entry),
    }


def _describe_command(entry: Entry) -> dict[str, Any]:
    found = find_distribution(entry.distribution)
    return {**_row(entry, "command", entry.problem), **_read_metadata(found)}


def _read_wheels(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        wheels = sorted(path for path in folder.iterdir() if path.suffix == ".whl")
    except OSError as error:
        raise UsageError(f"--from {folder}: {error.strerror}. Name a folder of wheels.") from error
    for path in wheels:
        try:
            found, entries = read_wheel(path)
        except PluginError as error:
            yield {**_row(Entry(path.stem, "", "", ""), "broken", str(error)), "source": path.name}
            continue
        for entry in entries:
            row = {**_row(entry, "wheel", None), **_read_metadata(found)}
            yield {**row, "source": path.name, "level": read_level(entry)}


def _row(entry: Entry, status: str, problem: str | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "source": "installed",
        "status": status,
        "problem": problem,
        "summary": "",
        "core": None,
        "private": False,
        "home": None,
        "hooks": None,
        "brings": None,
        "options": None,
        "level": None,
    }


def _read_metadata(found: Distribution | None) -> dict[str, Any]:
    if found is None:
        return {}
    links = {label.lower(): address for label, address in found.links.items()}
    ways = ("homepage", "home", "documentation", "repository", "source", *links)
    home = next((links[label] for label in ways if label in links), None)
    facts = {"core": _read_core(found.requires), "home": home, "private": found.is_private}
    return {"summary": found.summary, **facts}


def _read_core(requires: Sequence[str]) -> str | None:
    """Returns which versions of trainer-core are asked for, such as `>=0.1`, or None."""
    for text in requires:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(needed.name) == "trainer-core":
            return str(needed.specifier) or "any"
    return None
