"""`trainer plugins`: what is installed, in call order, for people and as JSON."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.snapshots.manifest import to_json_data
from trainer.writers.output import write_out
from trainer_callback import PluginError
from trainer_callback.calls.order import arrange
from trainer_callback.command_line.describing import describe
from trainer_callback.discovery import Entry, canonical, find_distribution, find_entries
from trainer_callback.plugins import (
    InstalledPlugin,
    describe_installed,
    exclude_unusable,
    explain_slow,
    not_installed,
)

from .commands import find_added
from .place import read_place

__all__ = ["main"]

_WIDEST: Final = 100
_PAGE: Final = "plugins.html"
_MEANING: Final = {"live": "in every run", "blocked": "no, blocked", "broken": "no, broken"}


def main(arguments: Sequence[str]) -> int:
    """Runs `trainer plugins`; returns 0, or 1 where the doctor has found something, or a
    plugin is below the level that it has to have.

    Raises:
        UsageError: there is no such plugin.
    """
    options = _parse(arguments)
    with contextlib.redirect_stdout(sys.stderr):  # what plugins print must not get into the JSON
        found = _find_out(options)
    write = _WRITERS.get(options.action, lambda rows: f"{options.output}\n")
    found = to_json_data(found) if options.json else found
    write_out(json.dumps(found, indent=2) + "\n" if options.json else write(found))
    if options.action == "check":
        return int(not found["suffices"])
    return int(options.action == "doctor" and bool(found))


def _find_out(options: argparse.Namespace) -> Any:
    """Returns what is asked for, as plain data; of an index, it writes the page."""
    plugins = describe_installed(find_entries(), anew=options.action == "doctor")
    if options.action == "doctor":
        from .plugin_doctor import examine

        return examine(plugins, options.config)
    if options.action == "show":
        _find(options.name, plugins).load()
    exclude_unusable(plugins, {})
    if options.action == "show":
        return _read_details(_find(options.name, plugins))
    if options.action == "check":
        from .plugin_check import check

        _find(options.name, plugins)
        return check(options.name, options.flags, options.require)
    if options.action == "index":
        from .plugin_index import list_index, write_index

        rows = list_index(plugins, options.wheels)
        if options.output is not None:
            write_index(rows, options.output)
        return rows
    listed = [_read_row(plugin) for plugin in _in_call_order(plugins)]
    return listed + [_read_command(entry) for entry in find_added()]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="trainer plugins", description="What is installed.", allow_abbrev=False
    )
    parser.set_defaults(action="list", json=False)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", parents=[common], help="all, in call order (the default)")
    details = actions.add_parser("show", parents=[common], help="one, with its hooks and options")
    details.add_argument("name", metavar="NAME")
    check = actions.add_parser(
        "check", parents=[common], help="how much of the contract one keeps: bronze, silver, gold"
    )
    check.add_argument("name", metavar="NAME")
    check.add_argument(
        "--flags",
        default="",
        metavar="WORDS",
        help='its options, such as "--ema_decay 0.5"; {new} in them is another text for each run '
        "that begins",
    )
    check.add_argument(
        "--require",
        choices=("bronze", "silver", "gold"),
        default="bronze",
        help="exit with 1 below this level (default: bronze)",
    )
    doctor = actions.add_parser(
        "doctor", parents=[common], help="what is wrong, and what to do; exit code 1 if anything is"
    )
    doctor.add_argument("--config", metavar="FILE", help="look for unknown options in a YAML file")
    index = actions.add_parser(
        "index", parents=[common], help="a page of all, with hooks, options, versions and levels"
    )
    index.add_argument(
        *("-o", "--output"),
        type=read_place,
        metavar="PAGE",
        help=f"where to; without it {_PAGE}, or nowhere with --json",
    )
    index.add_argument(
        "--from",
        dest="wheels",
        type=read_place,
        metavar="DIR",
        help="also the plugins in the wheels of a folder, as far as their metadata say",
    )
    words = list(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "list")
    options = parser.parse_args(words)
    if options.action == "index" and options.output is None and not options.json:
        options.output = Path(_PAGE)
    return options


def _find(name: str, plugins: Sequence[InstalledPlugin]) -> InstalledPlugin:
    found = next((plugin for plugin in plugins if plugin.entry.is_called(name)), None)
    if found is None:
        raise not_installed(name, [plugin.entry for plugin in plugins])
    return found


def _in_call_order(plugins: Sequence[InstalledPlugin]) -> list[InstalledPlugin]:
    """Returns the usable plugins as a run would call them, then the others by name."""
    usable = [plugin for plugin in plugins if plugin.problem is None]
    with contextlib.suppress(PluginError):  # a cycle: the doctor tells
        order = [record.name for record in arrange([plugin.record for plugin in usable])]
        usable.sort(key=lambda plugin: order.index(plugin.entry.name))
    return [*usable, *(plugin for plugin in plugins if plugin.problem is not None)]


def _read_row(plugin: InstalledPlugin) -> dict[str, Any]:
    known = describe(plugin)
    return {
        "name": plugin.entry.name,
        "distribution": plugin.entry.distribution,
        "version": plugin.entry.version,
        "status": plugin.kind,
        "problem": plugin.problem,
        "hooks": plugin.hooks,
        "brings": known.brings,
        "options": [option["flag"] for option in known.rows],
        "import_seconds": round(known.seconds, 3),
        "imports_torch": known.brings_torch,
        "slow": explain_slow(plugin),
    }


def _read_command(entry: Entry) -> dict[str, Any]:
    row = {"name": entry.name, "distribution": entry.distribution, "version": entry.version}
    nothing: dict[str, list[str]] = {"hooks": [], "brings": [], "options": []}
    return {**row, "status": "command", "problem": entry.problem, "slow": None, **nothing}


def _read_details(plugin: InstalledPlugin) -> dict[str, Any]:
    found = find_distribution(plugin.entry.distribution)
    return {
        **_read_row(plugin),
        "summary": found.summary if found is not None else "",
        "entry_point": plugin.entry.value,
        "file": _find_file(plugin.target),
        "links": found.links if found is not None else {},
        "state_version": getattr(plugin.target, "state_version", 1),
        "options": describe(plugin).rows,
    }


def _find_file(target: Any) -> str | None:
    known = target if isinstance(target, type) or inspect.ismodule(target) else type(target)
    try:
        return inspect.getsourcefile(known)
    except TypeError:  # built in, or nothing that could be loaded
        return None


def _active(row: Mapping[str, Any]) -> str:
    if row["status"] == "command":
        return f"trainer {row['name']}"
    flag = f"by --{canonical(row['name'])}"
    return _MEANING.get(row["status"], flag)


def _write_list(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No plugin is installed. Try: pip install trainer-plugin-early-stopping\n"
    header = ("name", "distribution", "version", "active")
    cells = [(r["name"], r["distribution"], r["version"], _active(r)) for r in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [_write_row(header, widths)]
    for cell_row, row in zip(cells, rows, strict=True):
        lines.append(_write_row(cell_row, widths))
        if row["problem"]:
            lines += _wrap(f"  {row['problem']}")
        if row["slow"]:
            lines += _wrap(f"  slow: {row['slow']}")
        for what in ("hooks", "brings", "options"):
            if row[what]:
                lines += _wrap(f"  {what}: {', '.join(row[what])}")
    return "\n".join(lines) + "\n"


def _write_row(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _write_details(details: Mapping[str, Any]) -> str:
    lines = [f"{details['name']} ({details['distribution']} {details['version']})"]
    links = ", ".join(f"{label}: {address}" for label, address in details["links"].items())
    for title, value in (
        ("summary", details["summary"]),
        ("active", _active(details)),
        ("problem", details["problem"]),
        ("hooks", ", ".join(details["hooks"])),
        ("brings", ", ".join(details["brings"])),
        ("state", f"version {details['state_version']}" if not details["problem"] else ""),
        ("links", links),
        ("entry", details["entry_point"]),
        ("file", details["file"]),
    ):
        if value:
            lines += _wrap(value, 9, f"{title:9}")
    for option in details["options"]:
        default = "required" if option["required"] else f"default: {option['default']}"
        lines += ["", f"{option['flag']} {option['type']}  ({default})"]
        lines += _wrap(f"  {option['help']}") if option["help"] else []
    return "\n".join(lines) + "\n"


def _write_findings(findings: Sequence[Mapping[str, str]]) -> str:
    if not findings:
        return "Nothing is wrong with the installed plugins.\n"
    lines = []
    for finding in findings:
        lines += [*_wrap(finding["problem"], 0), *_wrap(f"  -> {finding['advice']}", 5)]
    return "\n".join(lines) + "\n"


def _write_check(found: Mapping[str, Any]) -> str:
    label = f"{found['name']} ({found['distribution']} {found['version']})"
    level = "below bronze" if found["level"] == "none" else found["level"]
    count = sum(clause["outcome"] == "passed" for clause in found["clauses"])
    lines = [f"{label}: {level}, {count} clauses hold"]
    failed: dict[str, list[str]] = {}
    for clause in found["clauses"]:
        name = clause["clause"].removeprefix("test_")
        if clause["outcome"] == "failed":
            failed.setdefault(clause["message"], []).append(f"{clause['level']}: {name}")
        elif clause["outcome"] == "waived":
            lines += _wrap(f"waived: {name}: {clause['message']}", 2)
    for message, names in failed.items():
        lines += ["", *names]
        for line in message.splitlines():
            lines += _wrap(f"  {line}", 2)
    lines += [""] if failed else []
    lines += _wrap(f"in other trainers: {found['hosts']}", 2)
    return "\n".join(lines) + "\n"


_WRITERS: Final[Mapping[str, Callable[[Any], str]]] = {
    "list": _write_list,
    "show": _write_details,
    "doctor": _write_findings,
    "check": _write_check,
}


def _wrap(text: str, indent: int = 4, start: str = "") -> list[str]:
    width = min(shutil.get_terminal_size((80, 24)).columns, _WIDEST)
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
