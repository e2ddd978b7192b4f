"""The command `trainer`: each sub-command in a room of its own, imported when it is asked for.
Imports no torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from trainer_callback import RunError, SnapshotError, UsageError
from trainer_callback.discovery import find_version

__all__ = ["COMMANDS", "main"]

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "plugins": ("plugin_report", "list the installed plugins, show one, or find what is wrong"),
    "snapshot": ("snapshot_command", "list, show, verify or prune the snapshots of a run"),
    "report": ("report_command", "write a page of one or several runs: every curve, and the rest"),
    "compare": ("compare_command", "print several runs side by side"),
    "new-plugin": ("new_plugin", "write a plugin of your own, with its tests, to start from"),
}
"""Sub-command -> the module with its `main(arguments) -> int`, and its line in the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 where something is wrong with what it looked
    at, or 2 where it was refused.
    """
    parser = argparse.ArgumentParser(
        prog="trainer",
        description="Plugins, snapshots and runs of the trainer.",
        epilog="commands:\n"
        + "\n".join(f"  {name:12}{line}" for name, (_, line) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=find_version("trainer-core"))
    parser.add_argument(
        "command", choices=tuple(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    module, _ = COMMANDS[options.command]
    try:
        code: int = importlib.import_module(f".{module}", __package__).main(options.rest)
    except (RunError, UsageError, SnapshotError) as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    return code
