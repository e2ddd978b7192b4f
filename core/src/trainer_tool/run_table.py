"""Some runs side by side in rows of words, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .run_curves import best_of, name_monitor
from .run_files import RunFiles

__all__ = ["Rows", "make_tables"]

Rows = list[tuple[str, ...]]
"""A row is a name and a cell for each run."""

_NONE = "-"


def make_tables(runs: Sequence[RunFiles]) -> dict[str, Rows]:
    """Returns title -> rows, without those that are empty. Of several runs come first the options
    that differ; the last table has those that are equal, with one cell.
    """
    options = _collect(runs, lambda run: run.options)
    versions = _collect(runs, _read_versions)
    differ = [row for row in (*options, *versions) if len({*row[1:]}) > 1]
    equal = [row[:2] for row in options if row not in differ]
    tables = {
        "Options that differ": differ,
        "Results": _read_results(runs),
        "Costs of callbacks, in seconds": _collect(runs, _read_costs),
        "Versions": versions,
        "Options" if len(runs) == 1 else "Options that are equal": equal,
    }
    return {title: rows for title, rows in tables.items() if rows}


def _collect(runs: Iterable[RunFiles], read: Callable[[RunFiles], Mapping[str, str]]) -> Rows:
    found = [read(run) for run in runs]
    names = dict.fromkeys(name for each in found for name in each)
    return [(name, *(each.get(name, _NONE) for each in found)) for name in names]


def _read_results(runs: Sequence[RunFiles]) -> Rows:
    rows: Rows = [
        ("state", *(run.state for run in runs)),
        ("updates", *(str(run.step) for run in runs)),
        ("epoch", *(str(run.epoch) for run in runs)),
        *_collect(runs, _describe_best),
    ]
    return rows + _collect(
        runs,
        lambda run: {f"last {name}": f"{each[-1][1]:.6g}" for name, each in run.series.items()},
    )


def _describe_best(run: RunFiles) -> dict[str, str]:
    best, (name, _) = best_of(run), name_monitor(run)
    return {} if best is None else {f"best {name}": f"{best[1]:.6g}", "at update": str(best[0])}


def _read_versions(run: RunFiles) -> dict[str, str]:
    found = {name: str(value) for name, value in run.manifest.get("versions", {}).items()}
    for plugin in run.manifest.get("plugins", {}).values():
        found.setdefault(str(plugin.get("distribution")), str(plugin.get("version")))
    return found


def _read_costs(run: RunFiles) -> dict[str, str]:
    return {name: f"{cost:.3f} in {calls:.0f} calls" for name, (cost, calls) in run.costs.items()}
