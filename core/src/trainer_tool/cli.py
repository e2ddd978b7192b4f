"""The command `trainer`: each sub-command in a room of its own, imported when it is asked for.
Imports no torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from trainer_callback import RunError, SnapshotError, UsageError
from trainer_callback.discovery import find_version

from .commands import COMMANDS, list_added, run_added

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """Returns the help, with the commands that are installed: nobody else looks for them."""
        ours = "\n".join(f"  {name:12}{line}" for name, (_, line) in COMMANDS.items())
        self.epilog = f"commands:\n{ours}{list_added()}"
        return super().format_help()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 where something is wrong with what it looked
    at, or 2 where it was refused.
    """
    parser = _Parser(
        prog="trainer",
        description="Plugins, snapshots and runs of the trainer.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=find_version("trainer-core"))
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    name, words = options.command, options.rest
    try:
        if name not in COMMANDS:
            return run_added(name, words)
        module, _ = COMMANDS[name]
        code: int = importlib.import_module(f".{module}", __package__).main(words)
    except (RunError, UsageError, SnapshotError) as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    return code
