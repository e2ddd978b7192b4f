"""An installed plugin as its users see it: found by its entry point, its flags in the help of
`train-lm` and in a file of options.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer_callback.plugins import InstalledPlugin, discover

from .runs import fail

__all__ = ["find_plugin", "read_group", "read_options"]

_TRAIN_LM: Final = "import sys; from trainer_lm.cli import main; sys.exit(main())"


def find_plugin(name: str) -> InstalledPlugin:
    """Returns the installed plugin whose entry point is called `name`; fails the test where there
    is none, or where it cannot be used.
    """
    plugins = {plugin.entry.name: plugin for plugin in discover()}
    if name not in plugins:
        fail(
            f"no installed distribution has the entry point {name!r} in the group "
            f"trainer.callbacks. Installed: {', '.join(plugins) or 'none'}. Run: pip install -e ."
        )
    plugin = plugins[name]
    if plugin.problem is not None:
        fail(f"{plugin.label} cannot be used: {plugin.problem}")
    return plugin


def read_group(plugin: InstalledPlugin) -> tuple[list[str], str]:
    """Returns the flags in the plugin's own group of `train-lm --help`, and the whole help."""
    text = _train_lm("--help")
    _, _, group = text.partition(f"\n{plugin.label}:\n")
    lines = group.split("\n\n")[0].splitlines()
    words = [line.split()[0].rstrip(",") for line in lines if line.strip()]
    return [word for word in words if word.startswith("--")], text


def read_options(flags: Sequence[str], config: Path | None = None) -> tuple[dict[str, str], str]:
    """Returns flag -> value as `train-lm --print_config` prints it, and all that it prints.

    Args:
        flags: given on the command line.
        config: given as `--config`.
    """
    file = [] if config is None else ["--config", str(config)]
    text = _train_lm(*flags, *file, "--print_config")
    pairs = (line.partition("  # ")[0].partition(": ") for line in text.splitlines())
    return {name: value for name, _, value in pairs}, text


def _train_lm(*arguments: str) -> str:
    command = [sys.executable, "-c", _TRAIN_LM, *arguments]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        fail(f"train-lm {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
