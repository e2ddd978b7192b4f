"""`trainer compare OUTPUT_DIR ...`: what the page of these runs says in its tables."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

from .place import read_place
from .run_files import read_runs
from .run_table import Rows, make_tables
from .table import print_rows

__all__ = ["main"]

_WIDEST: Final = 26
"""Characters of a cell; a longer one is folded."""


def main(arguments: Sequence[str]) -> int:
    """Runs `trainer compare`; returns the exit code.

    Raises:
        UsageError: a directory holds no run, or cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="trainer compare",
        description="Runs side by side: the options that differ, what came of them, costs and "
        "versions.",
        allow_abbrev=False,
    )
    parser.add_argument("places", nargs="+", type=read_place, metavar="OUTPUT_DIR")
    parser.add_argument("--all", action="store_true", help="also the options that are equal")
    options = parser.parse_args(arguments)
    runs = read_runs(options.places)
    tables = make_tables(runs)
    if not options.all:
        tables.pop("Options that are equal", None)
    rows: Rows = [("", *(run.name for run in runs))]
    for title, found in tables.items():
        rows += [("",), (f"{title}:",), *found]
    for start, end in _fit(rows, len(runs)):
        print_rows([(row[0], *row[start:end]) for row in rows], header=True)
    return 0


def _fit(rows: Rows, count: int) -> Iterator[tuple[int, int]]:
    """Yields which cells of all rows stand side by side in this terminal, one run at least."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) + 2 for i in range(count + 1)]
    start, left = 1, 0
    for number, width in enumerate(widths[1:], 1):
        left -= min(width, _WIDEST)
        if left < 0:
            if number > 1:
                yield start, number
            start, left = number, shutil.get_terminal_size().columns - widths[0] - width
    yield start, count + 1
