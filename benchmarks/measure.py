"""Side by side in one process: rounds that run each way in turn, and tables of what came out.

Shared machines change speed several times a second, so no single time means anything: each round
gives one time per way, and what is
reported is the median, with quartiles, of the differences to (or ratios against) the first way of
the same round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Ways = Mapping[str, Callable[[], float]]
"""Name -> a function that runs one round and returns what it measured (a time, in any unit)."""

Row = dict[str, float]


def run_rounds(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Returns name -> one figure per round; the ways run in turn, in another order each round,
    after one round that does not count.
    """
    names, shuffle = list(ways), random.Random(0).shuffle
    figures: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        order = names[:]
        shuffle(order)
        for name in order:
            figure = ways[name]()
            if round_number:
                figures[name].append(figure)
    return figures


def summarise(figures: Mapping[str, Sequence[float]], base: str) -> dict[str, Row]:
    """Returns name -> median, and median and quartiles of the paired differences and ratios to
    `base`.
    """
    rows = {}
    for name, values in figures.items():
        pairs = list(zip(values, figures[base], strict=True))
        differences = [value - reference for value, reference in pairs]
        low, middle, high = statistics.quantiles(differences, n=4)
        rows[name] = {
            "median": statistics.median(values),
            "difference": middle,
            "difference_low": low,
            "difference_high": high,
            "ratio": statistics.median(value / reference for value, reference in pairs),
        }
    return rows


def print_table(title: str, rows: Mapping[str, Row], unit: str) -> None:
    """Prints a Markdown table."""
    print(f"\n{title}\n")
    print(f"| | median, {unit} | difference, {unit} (quartiles) | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, row in rows.items():
        spread = f"({row['difference_low']:.2f} … {row['difference_high']:.2f})"
        difference = f"{row['difference']:.2f} {spread}"
        print(f"| {name} | {row['median']:.2f} | {difference} | {row['ratio']:.2f} |")


def describe_machine(packages: Sequence[str]) -> dict[str, object]:
    """Returns date, processor, Python and the versions of `packages` that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def is_installed(module: str) -> bool:
    """Whether `module` can be imported; asked before a peer is measured."""
    return importlib.util.find_spec(module) is not None


def read_arguments(description: str, rounds: int) -> argparse.Namespace:
    """Returns `--rounds` and `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def write_json(path: Path | None, content: Mapping[str, object]) -> None:
    """Writes `content` to `path`, if there is one."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nwrote {path}", file=sys.stderr)
