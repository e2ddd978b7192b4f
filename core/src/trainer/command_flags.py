"""Which flags `train-lm` has. It is above this room and has its own imports, so it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from trainer_callback import UsageError

__all__ = ["read_command_flags"]

_ASK: Final = (
    "import json; from trainer_lm.cli import read_flags; print(json.dumps(read_flags(plugins={})))"
)


def read_command_flags(*, plugins: bool) -> dict[str, str]:
    """Returns the flags, each as `--flag` or `-f`, -> where their values go.

    Args:
        plugins: with those of the installed plugins.

    Raises:
        UsageError: it cannot say.
    """
    answer = subprocess.run(
        [sys.executable, "-c", _ASK.format(plugins)], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise UsageError(f"train-lm cannot say which options it has: {answer.stderr.strip()}")
    flags: dict[str, str] = json.loads(answer.stdout.splitlines()[-1])
    return flags
