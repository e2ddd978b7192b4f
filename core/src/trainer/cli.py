"""The command `trainer`: plugins and snapshots. Imports no torch for plugins."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from trainer_callback import UsageError
from trainer_callback.discovery import find_version
from trainer_callback.manager import Plugin
from trainer_callback.order import arrange
from trainer_callback.plugins import InstalledPlugin, discover

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 where it was refused."""
    parser = argparse.ArgumentParser(
        prog="trainer", description="Plugins and snapshots of the trainer.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=find_version("trainer-core"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plugins = commands.add_parser(
        "plugins",
        help="list the installed plugins in call order",
        description="Lists the installed plugins in call order: what they are, and what is wrong.",
    )
    plugins.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    try:
        return _list_plugins(as_json=options.json)
    except UsageError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 2


def _list_plugins(*, as_json: bool) -> int:
    rows = [_describe(plugin) for plugin in _in_call_order(discover())]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("No plugin is installed. Try: pip install trainer-plugin-early-stopping")
    else:
        _print_table(rows)
    return 0


def _in_call_order(plugins: Sequence[InstalledPlugin]) -> list[InstalledPlugin]:
    """Returns the usable plugins as a run would call them, then the others by name."""
    usable = {plugin.entry.name: plugin for plugin in plugins if plugin.problem is None}
    records = [Plugin(plugin.target, name) for name, plugin in usable.items()]
    order = [record.name for record in arrange(records)]
    return [usable[name] for name in order] + [p for p in plugins if p.problem is not None]


def _describe(plugin: InstalledPlugin) -> dict[str, Any]:
    return {
        "name": plugin.entry.name,
        "distribution": plugin.entry.distribution,
        "version": plugin.entry.version,
        "status": plugin.kind,
        "problem": plugin.problem,
        "hooks": plugin.hooks,
        "options": [f"--{option.flag}" for option in plugin.options],
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "distribution", "version", "active", "hooks", "options"):
        table.add_column(column, overflow="fold")
    meaning = {"flag": "by --{name}", "live": "in every run", "blocked": "no", "broken": "no"}
    for row in rows:
        active = meaning[row["status"]].format(name=row["name"])
        detail = row["problem"] or "\n".join(row["hooks"])
        table.add_row(
            row["name"],
            row["distribution"],
            row["version"],
            active,
            detail,
            "\n".join(row["options"]),
        )
    Console(highlight=False).print(table)
