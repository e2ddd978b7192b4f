"""Which flags `train-lm` has. It is above this room and has its own imports, so it is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Final

from trainer_callback import UsageError

__all__ = ["read_command_flags"]

_HELP: Final = "from trainer_lm.cli import main; raise SystemExit(main(['--help']))"


def read_command_flags(*, plugins: bool) -> set[str]:
    """Returns the names of the flags, without hyphens in front.

    Args:
        plugins: with those of the installed plugins.

    Raises:
        UsageError: it cannot say.
    """
    environment = dict(os.environ)
    if not plugins:
        environment["TRAINER_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    answer = subprocess.run(
        [sys.executable, "-c", _HELP], capture_output=True, text=True, check=False, env=environment
    )
    if answer.returncode != 0:
        raise UsageError(f"train-lm cannot say which options it has: {answer.stderr.strip()}")
    return set(re.findall(r"^\s+(?:-\w, )?--(\w+)", answer.stdout, re.MULTILINE))
