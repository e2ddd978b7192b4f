"""`trainer report OUTPUT_DIR ... [-o FILE]`: one page that shows the runs, without a network."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer.snapshots.durable import replace_file
from trainer.writers.output import write_out
from trainer_callback import UsageError

from .place import read_place
from .run_files import read_runs

__all__ = ["main"]

_NAME: Final = "report.html"
_HEAD: Final = 1024


def main(arguments: Sequence[str]) -> int:
    """Runs `trainer report`; returns the exit code.

    Raises:
        UsageError: a directory holds no run or cannot be read, the page cannot be written, or the
            library that draws it is not there.
    """
    parser = argparse.ArgumentParser(
        prog="trainer report",
        description="Writes one page with every curve of the runs, laid over each other. It opens "
        "from the disk and needs no network.",
        allow_abbrev=False,
    )
    parser.add_argument("places", nargs="+", type=read_place, metavar="OUTPUT_DIR")
    parser.add_argument(
        *("-o", "--output"),
        type=read_place,
        metavar="FILE",
        help=f"where to; without it {_NAME}, in the run's directory where it is one",
    )
    options = parser.parse_args(arguments)
    alone = len(options.places) == 1
    target: Path = options.output or (options.places[0] if alone else Path()) / _NAME
    if importlib.util.find_spec("bokeh") is None:
        raise UsageError(
            "the page is drawn by bokeh, which is not installed: pip install 'trainer-core[report]'"
        )
    runs = read_runs(options.places)
    from .run_page import MARK, render_page

    try:
        if target.exists() and not (target.is_file() and MARK.encode() in _read_head(target)):
            raise UsageError(
                f"{str(target)!r} is there already, and no page of this command. Move it away, or "
                "name another: -o FILE."
            )
        replace_file(target, render_page(runs).encode())
    except OSError as error:
        raise UsageError(f"{str(target)!r} cannot be written: {error.strerror}.") from error
    write_out(f"{target}\n")
    return 0


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
