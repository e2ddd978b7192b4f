"""The clauses of a contract, run without a session of pytest: whose configuration must not matter
for what is found.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from .clauses import Clauses

__all__ = ["ClauseResult", "run_clauses"]


@dataclass(frozen=True)
class ClauseResult:
    """What a clause has found.

    Attributes:
        clause: the name of its test.
        outcome: `passed`, `failed`, or `skipped` where it does not concern the callback.
        message: what is wrong and what to do, or why it was skipped; empty where it has passed.
    """

    clause: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""


def run_clauses(
    make_contract: Callable[[], Clauses], place: Path, only: Collection[str] | None = None
) -> Iterator[ClauseResult]:
    """Yields the result of each clause, in the order of their names: the first row of a clause of
    several that fails, else the first that passes.

    Args:
        make_contract: called for each, as pytest makes an object for each test.
        place: an empty folder, for what the runs write.
        only: names of the clauses to run; None for all.
    """
    for name in dir(make_contract()):
        if name.startswith("test_") and (only is None or name in only):
            rows = _run_rows(make_contract, name, place)
            yield min(rows, key=lambda row: ("failed", "passed", "skipped").index(row.outcome))


def _run_rows(
    make_contract: Callable[[], Clauses], name: str, place: Path
) -> Iterator[ClauseResult]:
    marks = [
        mark
        for mark in getattr(getattr(make_contract(), name), "pytestmark", ())
        if mark.name == "parametrize"
    ]
    for number, values in enumerate(itertools.product(*(mark.args[1] for mark in marks))):
        arguments = {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}
        result = _run(getattr(make_contract(), name), arguments, place / f"{name}-{number}")
        yield result
        if result.outcome == "failed":
            return


def _run(clause: Callable[..., None], arguments: Mapping[str, Any], place: Path) -> ClauseResult:
    values = dict(arguments)
    if "tmp_path" in inspect.signature(clause).parameters:
        place.mkdir(parents=True)
        values["tmp_path"] = place
    try:
        clause(**values)
    except pytest.skip.Exception as skipped:
        return ClauseResult(clause.__name__, "skipped", str(skipped.msg))
    except pytest.fail.Exception as failure:
        return ClauseResult(clause.__name__, "failed", str(failure.msg))
    except Exception as error:  # of the callback's own code, outside of a run
        text = f"{type(error).__name__}: {error}"
        return ClauseResult(clause.__name__, "failed", text)
    return ClauseResult(clause.__name__, "passed")
