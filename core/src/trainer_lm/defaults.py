"""Defaults of a team and of a user, from files, and those that plugins offer: below the command
line and `--config`, above those of the command itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from trainer_callback import UsageError
from trainer_callback.command_line.guard import stdout_to_stderr
from trainer_callback.errors import closest, show, text_of
from trainer_callback.plugins import InstalledPlugin

from .config_file import FileOption, read_config_file, read_mapping
from .parser import Parser

__all__ = ["put_defaults", "put_offers", "read_default_files", "read_offers"]

_VARIABLE: Final = "TRAINER_CONFIG"

_TOO_LATE: Final = frozenset({"no_plugin", "callback", "strict_plugins"})
"""What has had its effect before plugins are asked."""


def read_default_files() -> list[list[FileOption]]:
    """Returns the options of each file, the stronger one first: that of `TRAINER_CONFIG`, then
    `trainer-lm/defaults.yaml` in $XDG_CONFIG_HOME or ~/.config, which need not be there.
    `TRAINER_CONFIG=/dev/null` stands for no file at all.

    Raises:
        UsageError: a file cannot be read, or it is no plain mapping of options to values.
    """
    named = os.environ.get(_VARIABLE, "")
    if named == os.devnull:
        return []
    layers = [read_config_file(named, called=_VARIABLE)] if named else []
    own = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "trainer-lm", "defaults.yaml")
    try:
        own = own.expanduser()
    except RuntimeError:  # nobody's home is known
        return layers
    if own.is_file():
        layers.append(read_config_file(str(own), called="defaults"))
    return layers


def put_defaults(
    parser: Parser,
    namespace: argparse.Namespace,
    plugins: Sequence[InstalledPlugin],
    options: Sequence[FileOption],
) -> list[str]:
    """Puts into `namespace` what nothing stronger has said; returns a warning for each option that
    is none here, for such a file serves several versions and environments.

    What is an option of a plugin that is not used is left out: it is for runs that use it.

    Raises:
        UsageError: a value cannot be used.
    """
    owners = {flag: each for each in plugins for flag in each.group.flags}
    switches = [each for each in options if _is_switch(each, owners)]
    parser.read_file(namespace, switches)
    used = [each for each in options if _is_used(each, owners, namespace)]
    parser.read_file(namespace, [each for each in used if each not in switches])
    names = [flag.removeprefix("--") for flag in parser._option_string_actions]
    return [
        f"{each}: there is no such option here, so it has no effect.{closest(each.name, names)}"
        for each in options
        if parser.find(each.name) is None
    ]


def read_offers(
    plugins: Sequence[InstalledPlugin],
) -> tuple[dict[str, FileOption], list[str]]:
    """Returns option -> what the first of `plugins` offers that offers it; and a warning for what
    is wrong with an offer: nobody has asked for it.
    """
    said: list[str] = []
    offered: dict[str, FileOption] = {}
    for plugin in plugins:
        try:
            options = read_mapping(plugin.label, _ask(plugin))
        except UsageError as error:
            said.append(str(error))
            continue
        for option in options:
            if option.name in _TOO_LATE:
                said.append(f"{option}: this cannot be offered: it comes before plugins are asked.")
            elif (first := offered.setdefault(option.name, option)).words != option.words:
                said.append(f"{option}: this has no effect, for there is also {first}.")
    return offered, said


def put_offers(
    parser: Parser,
    namespace: argparse.Namespace,
    plugins: Sequence[InstalledPlugin],
    offers: Mapping[str, FileOption],
) -> list[str]:
    """Puts into `namespace` what plugins offer and nothing stronger has said; returns a warning for
    what has no effect.
    """
    switches = [each.entry.flag for each in plugins]  # before the options of their plugins
    names = sorted(offers, key=lambda name: name not in switches)
    return [text for name in names for text in _put(parser, namespace, plugins, offers[name])]


def _put(
    parser: Parser,
    namespace: argparse.Namespace,
    plugins: Sequence[InstalledPlugin],
    option: FileOption,
) -> list[str]:
    try:
        return put_defaults(parser, namespace, plugins, [option])
    except UsageError as error:
        return [str(error)]


def _ask(plugin: InstalledPlugin) -> Mapping[str, object]:
    """Returns what a plugin offers.

    Raises:
        UsageError: it fails, or answers something else.
    """
    found = next((e for e in plugin.implementations if e.hook == "offer_defaults"), None)
    if found is None:
        return {}
    try:
        with stdout_to_stderr():
            answer: object = found.function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {text_of(error)}"
        raise UsageError(f"{plugin.label} failed in offer_defaults: {what}.") from error
    if answer is None or isinstance(answer, Mapping):
        return answer or {}
    raise UsageError(
        f"{plugin.label}: offer_defaults must return a dict of options or None, got {show(answer)}."
    )


def _is_switch(option: FileOption, owners: dict[str, InstalledPlugin]) -> bool:
    owner = owners.get(f"--{option.name}")
    return owner is not None and option.name.removeprefix("no_") == owner.entry.flag


def _is_used(
    option: FileOption, owners: dict[str, InstalledPlugin], namespace: argparse.Namespace
) -> bool:
    owner = owners.get(f"--{option.name}")
    if owner is None or owner.kind != "flag" or owner.is_named(()):
        return True
    return bool(getattr(namespace, owner.entry.flag, False))
