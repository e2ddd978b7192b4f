"""Defaults of a team and of a user, from files: below the command line and `--config`, above those
of the command itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer_callback.errors import closest
from trainer_callback.plugins import InstalledPlugin

from .config_file import FileOption, read_config_file
from .parser import Parser

__all__ = ["put_defaults", "read_default_files"]

_VARIABLE: Final = "TRAINER_CONFIG"


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
