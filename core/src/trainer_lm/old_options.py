"""Options that a plugin has renamed or removed, as somebody still gives them to the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainer_callback import UsageError
from trainer_callback.plugins import InstalledPlugin

from .config_file import FileOption
from .parser import Parser

__all__ = ["check_old_options"]


def check_old_options(
    parser: Parser,
    namespace: argparse.Namespace,
    plugins: Sequence[InstalledPlugin],
    in_file: Sequence[FileOption],
) -> list[str]:
    """Returns a warning for each old name that was given, and for each removed option in a file,
    which is perhaps that of an older run. Takes the removed ones out of `namespace`.

    Raises:
        UsageError: a removed option was typed; or two names of one, with different values.
    """
    lines, said = {option.name: option for option in in_file}, []
    for plugin in plugins:
        label, prefix = plugin.label, plugin.old.prefix
        for name, why in plugin.old.removed.items():
            if _find_typed(parser, prefix + name):
                raise UsageError(f"--{prefix}{name} was removed from {label}: {why}")
            said += [
                f"{line}: this was removed from {label}: {why} The line has no effect."
                for line in _find_lines(lines, prefix + name)
            ]
            vars(namespace).pop(prefix + name, None)
        for name, new in plugin.old.renamed.items():
            before, now = prefix + name, prefix + new
            if _find_typed(parser, before):
                _check_same(parser, before, now)
                said.append(f"--{before} of {label} is called --{now} now.")
            found = _find_lines(lines, before)
            said += [f"{line}: in {label} this is called {now} now." for line in found]
    return said


def _find_lines(lines: dict[str, FileOption], name: str) -> list[FileOption]:
    return [lines[each] for each in (name, f"no_{name}") if each in lines]


def _find_typed(parser: Parser, name: str) -> list[tuple[object, list[str]]]:
    """Returns what the last words of `--NAME` and `--no_NAME` mean, where they were typed."""
    actions = (parser.find(each) for each in (name, f"no_{name}"))
    return [
        (action.const if action.nargs == 0 else None, parser.typed[action][-1])
        for action in actions
        if action is not None and action in parser.typed
    ]


def _check_same(parser: Parser, before: str, now: str) -> None:
    given = [*_find_typed(parser, before), *_find_typed(parser, now)]
    if any(each != given[0] for each in given):
        raise UsageError(
            f"--{before} is called --{now} now, and both are given, with different values. Keep "
            f"--{now}."
        )
