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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from trainer.config import TrainerConfig
from trainer_callback import PluginError, RunError, SnapshotError, UsageError
from trainer_callback.discovery import find_version
from trainer_callback.implementation import closest
from trainer_callback.plugins import InstalledPlugin, discover, read_one_off
from trainer_callback.wording import flags_spoken

from .config_file import read_config_file
from .output import printing
from .parser import Parser
from .settings import Settings
from .spelling import find_usual
from .threads import shorten_spinning

__all__ = ["main"]

_KNOWN_PLUGINS: Final = {
    "early_stop": "trainer-plugin-early-stopping",
    "gradient_": "trainer-plugin-grad-monitor",
    "tensorboard": "trainer-plugin-tensorboard",
    "ema": "trainer-plugin-ema",
    "throughput": "trainer-plugin-throughput",
}
"""Start of a flag -> the distribution of this project that brings it."""


@flags_spoken()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
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

        return run(settings)
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


def _read(arguments: list[str]) -> Settings | None:
    """Returns the settings, or None where the command was only asked to print them."""
    first_parser = _make_first_parser()
    first, _ = first_parser.parse_known_args(arguments)
    in_file = [] if first.config is None else read_config_file(first.config)
    first_parser.read_file(first, in_file)
    plugins = discover(first.no_plugin)
    _check_names(first.no_plugin, plugins)
    plugins += [read_one_off(value) for value in first.callback]
    for plugin in plugins:
        if plugin.kind == "broken":
            _complain(plugin, strict=first.strict_plugins)
    usable = [plugin for plugin in plugins if plugin.problem is None]
    parser = _make_parser(usable)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(_explain_unknown(unknown[0], parser, plugins))
    for option in in_file:
        if parser.find(option.name) is None:
            why = _explain_unknown(f"--{option.name}", parser, plugins)
            raise UsageError(f"{option.file}, line {option.line}: {why}")
    parser.read_file(namespace, in_file)
    if namespace.sample is not None:
        _print_sample(namespace)
        return None
    settings = Settings.read(namespace, usable, parser)
    if namespace.print_config:
        with printing():
            print(settings.as_yaml(with_origin=True), end="")
        return None
    return settings


def _print_sample(namespace: argparse.Namespace) -> None:
    seed = TrainerConfig(seed=getattr(namespace, "seed", 0)).seed
    prompt, tokens = namespace.prompt, namespace.sample_tokens
    if tokens < 0:
        raise UsageError(f"--sample_tokens must be at least 0, got {tokens}.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"--prompt {os.fsencode(prompt)!r} is not UTF-8 from byte {error.start} on. Give it "
            "in UTF-8."
        ) from error
    from .sample import printable, sample

    with printing():
        print(printable(sample(namespace.sample, prompt, tokens, seed)))


def _make_first_parser() -> Parser:
    """What has to be known before the plugins can add their flags."""
    parser = Parser(add_help=False)
    _add_run_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--config", metavar="FILE", help="read options from a YAML file")
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


def _make_parser(plugins: Sequence[InstalledPlugin]) -> Parser:
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
    group = parser.add_argument_group("this command")
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
        "--plugin_costs", action="store_true", help="print the time that each plugin took"
    )
    group.add_argument("--quiet", action="store_true", help="print the summary only")
    owners: dict[str, InstalledPlugin] = {}
    for plugin in plugins:
        title = parser.add_argument_group(plugin.label)
        try:
            plugin.add_options(title)
        except argparse.ArgumentError as error:
            raise PluginError(_blame(plugin, error, owners)) from error
        for action in title._group_actions:
            owners.update(dict.fromkeys(action.option_strings, plugin))
        for action in title._group_actions:
            if action.required:
                raise PluginError(
                    f"{plugin.label} adds {'/'.join(action.option_strings) or action.dest!r}, "
                    "which every run would have to give. Leave it out with --no_plugin "
                    f"{plugin.entry.name}."
                )
    return parser


def _blame(
    plugin: InstalledPlugin, error: argparse.ArgumentError, owners: Mapping[str, InstalledPlugin]
) -> str:
    """Says who else has the flag that `plugin` cannot add."""
    flags = str(error.argument_name).split("/")
    other = next((owners[flag] for flag in flags if flag in owners), None)
    if other is None:
        return f"{plugin.label}: {error}. Leave it out with --no_plugin {plugin.entry.name}."
    return (
        f"{other.label} and {plugin.label} both add {error.argument_name}. Leave one of them out: "
        f"--no_plugin {other.entry.name} or --no_plugin {plugin.entry.name}."
    )


def _with_underscores(arguments: Sequence[str]) -> list[str]:
    """Hyphens work for underscores in the name of every flag."""
    return [
        re.sub(r"^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument)
        for argument in arguments
    ]


def _check_names(names: Sequence[str], plugins: Sequence[InstalledPlugin]) -> None:
    installed = {plugin.entry.name.replace("-", "_") for plugin in plugins}
    for name in names:
        if name.replace("-", "_") not in installed:
            raise UsageError(
                f"--no_plugin {name}: no such plugin is installed.{closest(name, installed)} "
                f"Installed: {', '.join(sorted(installed)) or 'none'}."
            )


def _complain(plugin: InstalledPlugin, *, strict: bool) -> None:
    if strict:
        raise PluginError(
            f"{plugin.problem} Remove it, or block it: --no_plugin {plugin.entry.name}."
        )
    print(f"train-lm: warning: {plugin.problem} The run goes on.", file=sys.stderr)


def _explain_unknown(argument: str, parser: Parser, plugins: Sequence[InstalledPlugin]) -> str:
    """Returns what would have worked in place of an unknown argument."""
    flag = argument.partition("=")[0]
    name = flag.lstrip("-")
    for plugin in plugins:
        if plugin.problem is not None and name.startswith(plugin.entry.name.replace("-", "_")):
            return f"{flag} cannot be used: {plugin.problem}"
        if plugin.kind == "live" and name == plugin.entry.flag:
            return (
                f"{flag} is no option: {plugin.label} is live in every run. Leave {flag} out; "
                f"--no_plugin {name} is a run without it."
            )
    for start, distribution in _KNOWN_PLUGINS.items():
        if not name.removeprefix("no_").startswith(start):
            continue
        owner = next((p for p in plugins if p.entry.distribution == distribution), None)
        if owner is None:
            return f"{flag} belongs to a plugin that is not installed: pip install {distribution}"
        if owner.problem is not None:
            return f"{flag} cannot be used: {owner.label} is {owner.problem}."
    flags = [text for action in parser._actions for text in action.option_strings]
    usual = f"--{find_usual(name)}"
    if usual in flags:
        hint = f" Here it is {usual}."
    else:
        hint = closest(
            flag,
            [text for text in flags if not text.startswith("--no_") or flag.startswith("--no_")],
        )
    what = f"there is no option {flag}." if flag.startswith("-") else f"what is {argument!r}?"
    return f"{what}{hint} See train-lm --help, and trainer plugins for what is installed."
