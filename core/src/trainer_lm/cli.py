"""The command `train-lm`: from words to options, and from errors to exit codes. Parses before
anything imports torch.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from trainer.config import TrainerConfig
from trainer.writers.output import printing
from trainer_callback import PluginError, RunError, SnapshotError, UsageError
from trainer_callback.discovery import find_entries, find_version
from trainer_callback.errors import closest
from trainer_callback.plugins import (
    InstalledPlugin,
    describe_installed,
    exclude_unusable,
    explain_slow,
    load_used,
    read_one_off,
)
from trainer_callback.wording import flags_spoken

from .config_file import FileOption, find_owner, read_config_file
from .defaults import put_defaults, put_offers, read_default_files, read_offers
from .deprecations import show_deprecations
from .old_options import check_old_options
from .parser import Parser
from .recipe import origin_of, read_recipe, recipe_names
from .settings import Settings
from .threads import shorten_spinning
from .unknown import explain_unknown

__all__ = ["main", "make_parser", "read_flags"]

_SHOWS_ONLY: Final = frozenset({"-h", "--help", "--version", "--sample"})
"""Options with which no plugin is used."""

_SHOWS: Final = frozenset({"-h", "--help", "--print_config"})
"""Options with which is said what is slow, whether it is used or not."""


@flags_spoken()
def main(
    arguments: Sequence[str] | None = None, tell: Callable[..., object] = lambda **found: None
) -> int:
    """Runs the command; returns its exit code.

    Args:
        arguments: as they are typed; those of the process where there are none.
        tell: called with `output_dir`, where it writes, and then with `result`, how the run ended.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    shorten_spinning()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sample has any character, a terminal has not
    try:
        settings = _read(_with_underscores(given))
        if settings is None:
            return 0
        from .job import run

        return run(settings, tell)
    except RunError as error:
        print(f"train-lm: {error}", file=sys.stderr)
        return 1
    except (UsageError, SnapshotError) as error:
        print(f"train-lm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"train-lm: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def read_flags(plugins: Sequence[InstalledPlugin]) -> dict[str, str]:
    """Returns the flags of the command and of `plugins` -> where their values go. A plugin whose
    flags it cannot have is excluded.
    """
    return _read_flags(make_parser(plugins, ()))


def _read(arguments: list[str]) -> Settings | None:
    """Returns the settings, or None where the command was only asked to print them."""
    first, given, in_file, layers = _read_first(arguments)
    entries = find_entries(first.no_plugin)
    show_deprecations(entries, _warn)
    plugins = describe_installed(entries)
    _check_names(first.no_plugin, plugins)
    load_used(plugins, given, runs=given.isdisjoint(_SHOWS_ONLY))
    offers, said = read_offers(plugins)
    load_used(plugins, {f"--{name}" for name in offers}, runs=False)
    shows = not given.isdisjoint(_SHOWS)
    plugins += [read_one_off(value, plugins) for value in first.callback]
    broken = [plugin for plugin in plugins if plugin.kind == "broken"]
    parser = make_parser(plugins, given)
    for plugin in plugins:
        is_asked_for = plugin.is_requested and plugin not in broken
        _tell_problem(plugin, strict=first.strict_plugins or is_asked_for, shows=shows)
    usable = [plugin for plugin in plugins if plugin.problem is None]
    namespace, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        owner = find_owner(argument, getattr(namespace, "output_dir", None))
        raise UsageError(explain_unknown(argument, parser, plugins, owner))
    _check_file(in_file, parser, plugins)
    parser.read_file(namespace, in_file)
    for options in layers:
        said += put_defaults(parser, namespace, usable, options)
    said += _look_at_recipe(namespace.recipe, parser)
    said += put_offers(parser, namespace, usable, offers)
    in_files = [*chain(*reversed(layers), in_file)]
    _warn(*said, *check_old_options(parser, namespace, usable, in_files))
    if namespace.sample is not None:
        _print_sample(namespace)
        return None
    settings = Settings.read(namespace, usable, parser)
    _warn(*settings.notes)
    if namespace.print_config:
        with printing():
            print(settings.as_yaml(with_origin=True), end="")
        return None
    return settings


def _read_first(
    arguments: Sequence[str],
) -> tuple[argparse.Namespace, set[str], list[FileOption], list[list[FileOption]]]:
    """Returns what the plugins' own flags depend on: the options about plugins and files, the flags
    that somebody has given, the options of `--config`, and those of what is weaker: a recipe, and
    the files of defaults.
    """
    parser = Parser(add_help=False)
    _add_run_options(parser)
    first, others = parser.parse_known_args(arguments)
    in_file = [] if first.config is None else read_config_file(first.config)
    layers = [] if first.recipe is None else [read_recipe(first.recipe)]
    layers += read_default_files()
    for options in (in_file, *layers):
        parser.read_file(first, options)
    given = {word.partition("=")[0] for word in others}
    given |= {f"--{each.name}" for options in (in_file, *layers) for each in options}
    return first, given, in_file, layers


def _check_file(
    in_file: Sequence[FileOption], parser: Parser, plugins: Sequence[InstalledPlugin]
) -> None:
    for option in in_file:
        if parser.find(option.name) is None:
            why = explain_unknown(f"--{option.name}", parser, plugins, option.distribution)
            raise UsageError(f"{option.file}, line {option.line}: {why}")


def _look_at_recipe(name: str | None, parser: Parser) -> list[str]:
    """Returns a warning where the recipe `name` has set nothing, as beside a run's config.yaml."""
    if name is None or origin_of(name) in parser.files.values():
        return []
    return [f"--recipe {name} has no effect: all that it sets is set by what is stronger."]


def _print_sample(namespace: argparse.Namespace) -> None:
    seed = TrainerConfig(seed=getattr(namespace, "seed", 0)).seed
    prompt, tokens = _read_prompt(namespace.prompt), namespace.sample_tokens
    if tokens < 0:
        raise UsageError(f"--sample_tokens must be at least 0, got {tokens}.")
    from .sample import printable, sample

    with printing():
        print(printable(sample(namespace.sample, prompt, tokens, seed)))


def _read_prompt(prompt: str) -> str:
    """Returns the text that was typed, also where the locale knows no UTF-8."""
    if not any("\ud800" <= character <= "\udfff" for character in prompt):
        return prompt
    data = os.fsencode(prompt)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--prompt {data!r} is not UTF-8 from byte {error.start} on. Give it in UTF-8."
        ) from error


def _add_run_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--config", metavar="FILE", help="read options from a YAML file")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="take the settings of a known model where neither the command line nor --config says "
        f"otherwise: {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "--no_plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="do not load this plugin (may be repeated)",
    )
    parser.add_argument(
        "--callback",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="use a callback of a module in this directory (may be repeated)",
    )
    parser.add_argument(
        "--strict_plugins",
        action="store_true",
        help="refuse to run while an installed plugin is broken",
    )


def make_parser(plugins: Sequence[InstalledPlugin], given: Collection[str]) -> Parser:
    """Returns the parser of the command and of the plugins, except those that it excludes."""
    parser = Parser(
        prog="train-lm",
        usage="train-lm [options]",
        description="Trains a small GPT on a text. Without any option: on the text of Python's own "
        "language reference, in about two minutes on two cores.",
    )
    parser.add_argument(
        "--version", action="version", version=f"train-lm {find_version('trainer-core')}"
    )
    Settings.add_options(parser)
    _add_command_options(parser.add_argument_group("this command"))
    exclude_unusable(plugins, _read_flags(parser), given)
    for plugin in plugins:
        if plugin.problem is None:
            plugin.group.join(parser)
    return parser


def _add_command_options(group: argparse._ArgumentGroup) -> None:
    _add_run_options(group)
    group.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="PATH",
        help="go on from the newest sound snapshot of the output directory, or from PATH; "
        "`auto`: start where there is none",
    )
    group.add_argument(
        "--print_config", action="store_true", help="print every option and where it came from"
    )
    group.add_argument(
        "--sample",
        type=Path,
        metavar="OUTPUT_DIR",
        help="train nothing: print text that the finished model of that run generates",
    )
    group.add_argument("--prompt", default="", metavar="TEXT", help="what --sample begins with")
    group.add_argument(
        "--sample_tokens", type=int, default=200, metavar="N", help="length of a sample"
    )
    group.add_argument(
        "--trace_hooks",
        nargs="?",
        const="*",
        default=False,
        metavar="GLOB",
        help="print each call of the hooks whose names match GLOB, or of all hooks",
    )
    group.add_argument(
        "--plugin_costs", action="store_true", help="print the time that each plugin took"
    )
    group.add_argument("--quiet", action="store_true", help="print the summary only")


def _read_flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    return {flag: action.dest for action in parser._actions for flag in action.option_strings}


def _with_underscores(arguments: Sequence[str]) -> list[str]:
    """Hyphens work for underscores in the name of every flag."""
    return [
        re.sub(r"^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument)
        for argument in arguments
    ]


def _check_names(names: Sequence[str], plugins: Sequence[InstalledPlugin]) -> None:
    installed = {plugin.entry.flag for plugin in plugins}
    for name in names:
        if not any(plugin.entry.is_called(name) for plugin in plugins):
            raise UsageError(
                f"--no_plugin {name}: no such plugin is installed.{closest(name, installed)} "
                f"Installed: {', '.join(sorted(installed)) or 'none'}."
            )


def _tell_problem(plugin: InstalledPlugin, *, strict: bool, shows: bool) -> None:
    if plugin.kind == "broken" and plugin.matters:
        _complain(plugin, strict=strict)
    elif (shows or plugin.description is None) and (words := explain_slow(plugin)) is not None:
        _warn(words)


def _complain(plugin: InstalledPlugin, *, strict: bool) -> None:
    problem, name = f"{str(plugin.problem).rstrip('.: ')}.", plugin.entry.flag
    if strict:
        advice = f" Remove it, or block it: --no_plugin {name}."
        raise PluginError(problem if "--no_plugin" in problem else problem + advice)
    print(f"train-lm: warning: {problem} The run goes on without {name}.", file=sys.stderr)


def _warn(*texts: str) -> None:
    for text in texts:
        print(f"train-lm: warning: {text}", file=sys.stderr)
