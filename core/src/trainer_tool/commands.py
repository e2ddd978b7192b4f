"""The sub-commands of `trainer`: its own, and those that plugins add, which are found in the
metadata and imported when they are run.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from trainer_callback import PluginError, RunError, SnapshotError, UsageError
from trainer_callback.discovery import Entry, find_distribution, find_functions
from trainer_callback.errors import closest, show, text_of

__all__ = ["COMMANDS", "find_added", "list_added", "run_added"]

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "plugins": ("plugin_report", "list the installed plugins, show one, or find what is wrong"),
    "snapshot": ("snapshot_command", "list, show, verify or prune the snapshots of a run"),
    "report": ("report_command", "write a page of one or several runs: every curve, and the rest"),
    "compare": ("compare_command", "print several runs side by side"),
    "new-plugin": ("new_plugin", "write a plugin of your own, with its tests, to start from"),
}
"""Sub-command -> the module with its `main(arguments) -> int`, and its line in the help."""

_NAME: Final = re.compile(r"[A-Za-z][\w-]*")


def find_added() -> list[Entry]:
    """Returns the commands of plugins by name, those that cannot be run so with their `problem`."""
    entries = find_functions("trainer.commands")
    return [replace(each, problem=_find_problem(each, entries)) for each in entries]


def _find_problem(entry: Entry, entries: Sequence[Entry]) -> str | None:
    if entry.problem is not None:
        return entry.problem
    full = _full_name(entry)
    if entry.name in COMMANDS:
        return f"{entry.name} is a command of trainer itself; this one is `trainer {full}`"
    if not _NAME.fullmatch(entry.name):
        return f"{entry.name!r} is no name for a command; its author can choose one such as `swa`"
    rivals = [each for each in entries if each.name == entry.name and each.problem is None]
    if len(rivals) > 1:
        ways = " or ".join(f"`trainer {_full_name(each)}`" for each in rivals)
        labels = " and ".join(each.label for each in rivals)
        return f"{entry.name} is the name of several commands: {labels}. Write {ways}"
    return None


def _full_name(entry: Entry) -> str:
    return f"{entry.distribution}:{entry.name}"


def list_added() -> str:
    """Returns the lines of the help that tell of the commands of plugins; empty without any."""
    lines = []
    for entry in find_added():
        found = find_distribution(entry.distribution)
        line = entry.problem or (found.summary if found is not None else "")
        lines.append(f"  {entry.name:12}{line} ({entry.distribution} {entry.version})")
    return "\n".join(["", "commands of plugins:", *lines]) if lines else ""


def run_added(name: str, words: Sequence[str]) -> int:
    """Runs the command `name`, or `DISTRIBUTION:NAME`, of a plugin; returns its exit code.

    Raises:
        UsageError: there is no such command, or it cannot be used.
    """
    entries = find_added()
    entry = next((each for each in entries if name in (each.name, _full_name(each))), None)
    if entry is None:
        known = [*COMMANDS, *(each.name for each in entries)]
        raise UsageError(
            f"there is no command {name!r}.{closest(name, known)} There are {', '.join(known)}."
        )
    if entry.problem is not None and name != _full_name(entry):
        raise UsageError(f"{entry.problem}.")
    function = _load(entry)
    try:
        code: object = function(list(words))
    except (RunError, UsageError, SnapshotError):
        raise
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {text_of(error)}"
        sys.stderr.write(f"trainer: {entry.label} failed: {what}\n")
        return 1
    if code is None or (isinstance(code, int) and not isinstance(code, bool)):
        return code or 0
    raise PluginError(
        f"{entry.label}: its command returned {show(code)}, where an exit code is expected. Its "
        "author can return 0 where all is well."
    )


def _load(entry: Entry) -> Any:
    try:
        function = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(
            f"the command {entry.label} could not be imported: {type(error).__name__}: "
            f"{text_of(error)}."
        ) from error
    if not callable(function) or isinstance(function, type):
        raise PluginError(
            f"the command {entry.label} is {show(function)}, where a function is expected that "
            "takes the words of the command line and returns an exit code."
        )
    return function
