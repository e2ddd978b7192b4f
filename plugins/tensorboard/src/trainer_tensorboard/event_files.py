"""The event files of a directory: how long each is, and cutting them back to what they were."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["SUFFIX", "count_foreign", "cut_files", "measure_files", "wait_for_later_name"]

SUFFIX: Final = ".trainer"
"""At the end of a file's name: it is ours. Other writers may use the same directory."""

_PATTERN: Final = "events.out.tfevents.*"


def measure_files(directory: Path) -> dict[str, int]:
    """Returns name -> length in bytes of each event file of ours in `directory`."""
    paths = sorted(directory.glob(_PATTERN + SUFFIX))
    return {path.name: path.stat().st_size for path in paths}


def count_foreign(directory: Path) -> int:
    """Returns how many event files in `directory` are not ours."""
    return len([*directory.glob(_PATTERN)]) - len(measure_files(directory))


def cut_files(directory: Path, lengths: Mapping[str, int]) -> None:
    """Makes our event files in `directory` those of `lengths`: what was written after is removed.

    A file that is shorter than it was stays as it is: after a crash of the machine its end may not
    have reached the disk.
    """
    for name, length in measure_files(directory).items():
        if name not in lengths:
            (directory / name).unlink()
        elif length > lengths[name]:
            os.truncate(directory / name, lengths[name])


def wait_for_later_name(directory: Path) -> None:
    """Waits, less than a second, until a new file is named behind those in `directory`.

    TensorBoard reads files in the order of their names. Those begin with the second in which a file
    was made; process and number that follow are not ordered (10 comes before 9).
    """
    now = time.time()
    if any(name.split(".")[3] == f"{int(now):010d}" for name in measure_files(directory)):
        time.sleep(int(now) + 1 - now)
