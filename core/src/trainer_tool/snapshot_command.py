"""`trainer snapshot list|show|verify|prune PATH`: options, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.filesize import decimal

from trainer.snapshots.manifest import to_json_data
from trainer.writers.output import write_out

from .place import read_place
from .snapshot_report import Report, find_snapshots, prune, report
from .table import clean, print_rows

__all__ = ["main"]


_ACTIONS: Final[Mapping[str, str]] = {
    "list": "one line for each snapshot of a run",
    "show": "what the newest snapshot, or the one at PATH, holds",
    "verify": "read each as a resume does, every byte of it; exit code 1 where one is damaged",
    "prune": "remove all but the newest sound snapshots, and leftovers",
}
_SHOWN: Final = ("val_loss", "train_loss", "loss")


def main(arguments: Sequence[str]) -> int:
    """Runs `trainer snapshot`; returns the exit code: 1 where a snapshot is damaged.

    Raises:
        UsageError: there is no such run, or it is in use.
    """
    options = _make_parser().parse_args(arguments)
    if options.action == "prune":
        removed = [str(path) for path in prune(options.path, options.keep)]
        lines = [f"removed {clean(path)}" for path in removed] or ["nothing to remove"]
        _write(json.dumps(removed, indent=2) if options.json else "\n".join(lines))
        return 0
    paths = find_snapshots(options.path)
    if options.action == "show":
        paths = paths[:1]
    reports = [report(path, check=options.action == "verify") for path in paths]
    if options.action != "show":  # the run may go on, and have removed the oldest meanwhile
        reports = [each for each in reports if each.problem is None or os.path.lexists(each.path)]
    if options.json:
        _write(json.dumps(to_json_data([asdict(each) for each in reports]), indent=2))
    elif options.action == "show":
        _print_one(reports[0])
    else:
        _print_table(reports)
    return int(any(each.problem is not None for each in reports))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer snapshot",
        description="What is in the snapshots of a run, and whether they are sound. Nothing of a "
        "snapshot is run.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument(
            "path", type=read_place, metavar="PATH", help="output directory or snapshot"
        )
        action.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if name == "prune":
            action.add_argument(
                "--keep", type=_count, default=1, metavar="N", help="how many to keep (default 1)"
            )
    return parser


def _write(text: str) -> None:
    write_out(f"{text}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _print_table(reports: Iterable[Report]) -> None:
    rows = [("snapshot", "step", "epoch", "size", "metrics", "state")]
    for each in reports:
        manifest = each.manifest
        rows.append(
            (
                Path(each.path).name,
                str(manifest.get("step", "")),
                str(manifest.get("epoch", "")),
                decimal(each.size),
                _join({k: v for k, v in manifest.get("metrics", {}).items() if k in _SHOWN}),
                each.problem or ("sound" if each.checked else "not checked"),
            )
        )
    print_rows(rows, header=True)


def _print_one(shown: Report) -> None:
    manifest = shown.manifest
    rows = [("path", shown.path), ("state", shown.problem or "the manifest is sound")]
    if manifest:
        rows += [
            (name, str(manifest.get(name, ""))) for name in ("format", "step", "epoch", "digest")
        ]
        rows += [("metrics", _join(manifest.get("metrics", {})))]
        rows += [("versions", _join(manifest.get("versions", {})))]
        rows += [
            (f"plugin {key}", _join(value)) for key, value in manifest.get("plugins", {}).items()
        ]
        rows += [("options", _join(manifest.get("options", {})))]
        rows += [(name, decimal(entry["size"])) for name, entry in manifest["files"].items()]
    print_rows(rows, header=False)


def _join(values: object) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    parts = (
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {_flat(value)}"
        for name, value in values.items()
    )
    return ", ".join(parts)


def _flat(value: object) -> str:
    return f"({_join(value)})" if isinstance(value, Mapping) else str(value)
