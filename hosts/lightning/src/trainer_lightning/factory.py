"""What Lightning asks for more callbacks, by an entry point: there are none unless the environment
asks for plugins.
"""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["make_callbacks"]

logger: logging.Logger = logging.getLogger("trainer")


def make_callbacks() -> list[Any]:
    """Returns the plugins that `TRAINER_CALLBACKS` names, separated by commas, and those in the
    file that `TRAINER_CONFIG` names.

    Raises:
        PluginError: a plugin cannot be used.
        UsageError: the file cannot be used.
    """
    names = [each.strip() for each in os.environ.get("TRAINER_CALLBACKS", "").split(",")]
    entries: list[object] = [name for name in names if name]
    file = os.environ.get("TRAINER_CONFIG", "")
    if file and file != os.devnull:
        entries += _read_entries(file)
    if not entries:
        return []
    from .environment import EnvironmentPlugins

    return [EnvironmentPlugins(entries)]


def _read_entries(file: str) -> list[object]:
    """Returns the callbacks that the plugins' options in a file of `train-lm --config` ask for."""
    from trainer_callback.plugins import discover, exclude_unusable
    from trainer_lm.config_file import read_config_file
    from trainer_lm.defaults import put_defaults
    from trainer_lm.parser import Parser

    options, plugins = read_config_file(file, called="TRAINER_CONFIG"), discover()
    exclude_unusable(plugins, {}, {f"--{each.name}" for each in options})
    usable = [each for each in plugins if each.problem is None]
    parser = Parser(add_help=False)
    for plugin in usable:
        plugin.group.join(parser)
    namespace = parser.parse_args([])
    ours = [each for each in options if parser.find(each.name) is not None]
    others = ", ".join(each.name for each in options if each not in ours)
    if others:
        logger.info("TRAINER_CONFIG %s: %s are no options of plugins here.", file, others)
    put_defaults(parser, namespace, usable, ours)
    made = [each.make_callbacks(namespace) for each in usable if each.kind == "flag"]
    return [each.callback for callbacks in made for each in callbacks]
