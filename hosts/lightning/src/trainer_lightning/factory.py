"""What Lightning asks for more callbacks, by an entry point: there are none unless the environment
asks for plugins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainer_callback import UsageError

__all__ = ["make_callbacks"]


def make_callbacks() -> list[Any]:
    """Returns the plugins that `TRAINER_CALLBACKS` names, separated by commas, and those in the
    file that `TRAINER_CONFIG` names.

    Raises:
        UsageError: the file cannot be used.
    """
    names = [each.strip() for each in os.environ.get("TRAINER_CALLBACKS", "").split(",")]
    entries: list[object] = [name for name in names if name]
    file = os.environ.get("TRAINER_CONFIG", "")
    if file and file != os.devnull:
        entries += _read_entries(Path(file).expanduser())
    if not entries:
        return []
    from .environment import EnvironmentPlugins

    return [EnvironmentPlugins(entries)]


def _read_entries(file: Path) -> list[object]:
    raise UsageError(f"TRAINER_CONFIG {file} cannot be read.")
