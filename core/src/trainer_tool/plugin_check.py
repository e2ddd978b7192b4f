"""`trainer plugins check`: the contract of the test kit, over an installed plugin."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainer_callback import UsageError
from trainer_callback.discovery import Entry

from .plugin_levels import keep_level

__all__ = ["check"]


def check(name: str, flags: str, required: str) -> dict[str, Any]:
    """Returns what was found: `name`, `distribution`, `version`, `level`, `suffices`, `hosts` (in
    which other trainers it is the same, in words), and `clauses` with `clause`, `level`, `outcome`
    and `message`.

    Args:
        flags: options of the plugin, as they are typed.
        required: the level that suffices.

    Raises:
        UsageError: pytest is not installed, or the plugin cannot be built with `flags`.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UsageError(
            "trainer plugins check needs pytest, which is not installed. Run: pip install "
            "'trainer-core[testing]'"
        )
    from trainer.testing.level import LEVELS, find_level

    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"--flags {flags!r}: {error}. Quote as in a shell.") from error
    logging.getLogger().addHandler(logging.NullHandler())  # what the runs say is not asked for
    with tempfile.TemporaryDirectory() as folder:
        report = find_level(name, words, Path(folder))
    _keep(report.entry, report.level)
    clauses = [
        {"clause": r.clause, "level": level, "outcome": r.outcome, "message": r.message}
        for level, results in report.results.items()
        for r in results
    ]
    clauses += [
        {"clause": clause, "level": "", "outcome": "waived", "message": reason}
        for clause, reason in report.waived.items()
    ]
    return {
        "name": report.entry.name,
        "distribution": report.entry.distribution,
        "version": report.entry.version,
        "level": report.level,
        "suffices": LEVELS.index(report.level) >= LEVELS.index(required),
        "hosts": report.hosts,
        "clauses": clauses,
    }


def _keep(entry: Entry, level: str) -> None:
    try:
        keep_level(entry, level)
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"trainer: the level is not kept for `trainer plugins index`: {error}\n")
