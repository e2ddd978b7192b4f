"""Plugins chosen by flags, or by a file, in a program that is not `train-lm`: a script of somebody
else's, whose own options are taken from the rest of its command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_callback import PluginError, UsageError
from trainer_callback.calls.identity import Plugin
from trainer_callback.discovery import find_entries
from trainer_callback.errors import closest
from trainer_callback.plugins import (
    InstalledPlugin,
    describe_installed,
    exclude_unusable,
    load_used,
)
from trainer_callback.wording import flags_spoken

from .cli import make_parser
from .config_file import FileOption, read_config_file
from .parser import Parser

__all__ = ["from_args", "from_config"]


@flags_spoken()
def from_args(
    arguments: Sequence[str] | None = None, *, taken: Mapping[str, str] | None = None
) -> tuple[list[Any], list[str]]:
    """Takes the flags of installed plugins off a command line.

    With `-h` or `--help` in it, their help is printed; the program's own follows.

    Args:
        arguments: default those of this process.
        taken: flag -> attribute, of the program's own options. A plugin that has one of them, too,
            cannot be chosen by flags here.

    Returns:
        The callbacks that the flags ask for, and the arguments that are left.

    Raises:
        UsageError: a value cannot be used.
        PluginError: a plugin that was asked for cannot be used.
    """
    words = sys.argv[1:] if arguments is None else [*arguments]
    given = {word.partition("=")[0] for word in words}
    plugins, parser = _describe(given, dict(taken or {}))
    if not given.isdisjoint(("-h", "--help")):
        parser.print_help()
    namespace, rest = parser.parse_known_args(words)
    return _make(plugins, namespace), rest


@flags_spoken()
def from_config(path: str | Path) -> list[Any]:
    """Returns the callbacks that a file of `train-lm --config` asks for.

    What else stands in it is an option of `train-lm`, which has no effect here: that is refused, so
    that nobody takes it for one of the trainer at hand.

    Raises:
        UsageError: the file, or a value in it, cannot be used.
        PluginError: a plugin that was asked for cannot be used.
    """
    options = read_config_file(str(path), "from_config")
    given = {f"--{option.name}" for option in options}
    plugins, parser = _describe(given, {})
    for option in options:
        if parser.find(option.name) is None:
            raise UsageError(_explain(option, plugins, parser))
    namespace = parser.parse_args([])
    parser.read_file(namespace, options)
    return _make(plugins, namespace)


def _explain(option: FileOption, plugins: Sequence[InstalledPlugin], parser: Parser) -> str:
    if make_parser(plugins, ()).find(option.name) is not None:
        return (
            f"{option}: this is an option of train-lm, and no plugin's, so it has no effect here. "
            "Set it in the trainer at hand, and take the line out."
        )
    names = [flag.removeprefix("--") for flag in parser._option_string_actions]
    return f"{option}: no installed plugin has this option.{closest(option.name, names)}"


def _describe(
    given: Collection[str], taken: Mapping[str, str]
) -> tuple[list[InstalledPlugin], Parser]:
    """Returns the installed plugins, and a parser of their options, but for those that are wrong.

    Raises:
        PluginError: one of these was asked for.
    """
    plugins = describe_installed(find_entries())
    load_used(plugins, given, runs=True)
    broken = [plugin for plugin in plugins if plugin.kind == "broken"]
    exclude_unusable(plugins, taken, given)
    parser = Parser(usage=argparse.SUPPRESS, add_help=False)
    parser.command = Path(sys.argv[0]).name or "python"
    for plugin in plugins:
        if plugin.problem is None:
            plugin.group.join(parser)
        elif plugin.is_named(given) or (plugin.is_requested and plugin not in broken):
            raise PluginError(str(plugin.problem))
    return [plugin for plugin in plugins if plugin.problem is None], parser


def _make(plugins: Sequence[InstalledPlugin], namespace: Any) -> list[Any]:
    """Returns the callbacks that are asked for; a run finds those that are live in every run."""
    made: list[Plugin] = []
    for plugin in plugins:
        live = plugin.target if plugin.is_callback else None
        made += [each for each in plugin.make_callbacks(namespace) if each.callback is not live]
    return made
