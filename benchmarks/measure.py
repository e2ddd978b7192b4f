"""Side by side in one process: rounds that run each way in turn, and tables of what came out.

Shared machines change speed several times a second, so no single time means anything: each round
gives one time per way, and what is reported is the median, with quartiles, of the differences to
(or ratios against) the first way of the same round.

What a benchmark prints is Markdown: `run.py` puts it into README.md as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Ways = Mapping[str, Callable[[], float]]
"""Name -> a function that runs one round and returns what it measured (a time, in any unit)."""

Row = dict[str, float]

PACKAGES = (
    *("torch", "trainer-core", "pluggy", "pytorch-ignite", "skorch", "torchtnt", "accelerate"),
    *("lightning", "transformers", "fastai", "keras"),
)


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
    """Returns name -> `describe_pairs` against `base`."""
    return {
        name: describe_pairs(list(zip(figures[base], values, strict=True)))
        for name, values in figures.items()
    }


def describe_pairs(pairs: Sequence[tuple[float, float]]) -> Row:
    """Returns the median, and median and quartiles of the paired differences and ratios.

    Args:
        pairs: a figure of the base, and one that was measured beside it.
    """
    differences = [value - base for base, value in pairs]
    both = differences * 2 if len(differences) == 1 else differences  # no quartiles of one
    low, middle, high = statistics.quantiles(both, n=4)
    return {
        "median": statistics.median(value for _, value in pairs),
        "difference": middle,
        "difference_low": low,
        "difference_high": high,
        "ratio": statistics.median(value / base for base, value in pairs),
    }


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a Markdown table; all columns but the first are numbers."""
    print(f"\n| {' | '.join(head)} |")
    print(f"| --- |{' ---: |' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def describe_machine() -> dict[str, object]:
    """Returns date, processor, Python and the versions of what is installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "machine": f"{_read_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def is_installed(module: str) -> bool:
    """Whether `module` can be imported; asked before a peer is measured."""
    return importlib.util.find_spec(module) is not None


def make_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser of `--rounds` and `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser


def write_json(path: Path | None, results: object, **facts: object) -> None:
    """Writes the machine, `facts` and `results` to `path`, if there is one."""
    if path is not None:
        content = {**describe_machine(), **facts, "results": results}
        path.write_text(json.dumps(_rounded(content), indent=1) + "\n")
        print(f"wrote {path}", file=sys.stderr)


def _rounded(content: object) -> object:
    """Four digits are more than a shared machine can tell."""
    if isinstance(content, float):
        return float(f"{content:.4g}")
    if isinstance(content, Mapping):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_rounded(value) for value in content]
    return content


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
