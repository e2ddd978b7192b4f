"""Clauses about a callback in two processes that train one model."""

from __future__ import annotations

import pytest

from .clauses import Clauses
from .pair import Report, train_in_two
from .runs import fail

__all__ = ["TogetherClauses"]


class TogetherClauses(Clauses):
    """A callback does the same in all processes, and writes in one of them."""

    def test_two_processes_train_one_model(self) -> None:
        for rank, report in enumerate(self._reports()):
            if report.failure:
                fail(
                    f"in two processes, number {rank} fails: {report.failure}\nWhat changes "
                    "weights has to be the same in all: draw from a generator whose seed is "
                    "trainer.step, decide by trainer.total(...), and call that and save_weights in "
                    "every process."
                )

    def test_only_the_main_process_writes(self) -> None:
        report = self._finished()[1]
        if report.written:
            names = ", ".join(sorted(set(report.written))[:3])
            fail(
                f"the second of two processes writes {names}, as the first does. Write files with "
                "`if trainer.is_main_process:`."
            )
        if report.printed:
            fail(
                f"the second of two processes prints {report.printed[0][:60]!r}, as the first "
                "does. Print with `if trainer.is_main_process:`."
            )

    def test_two_killed_processes_go_on_as_if_nothing_had_happened(self) -> None:
        for rank, report in enumerate(self._finished()):
            if report.difference:
                fail(
                    "two processes that were killed and resumed are not as if they had never "
                    f"ended: in number {rank} {report.difference}. A snapshot keeps the state of "
                    "the main process for all; say state_per_process = True where each has its "
                    "own."
                )

    def _finished(self) -> list[Report]:
        """Returns the reports; skips the test where there are none, which has a test of its own."""
        reports = self._reports()
        if any(report.failure for report in reports):
            pytest.skip("it fails in two processes, see test_two_processes_train_one_model")
        return reports

    def _reports(self) -> list[Report]:
        reports = train_in_two(self)
        for report in reports:
            if report.skipped:
                pytest.skip(report.skipped)
        return reports
