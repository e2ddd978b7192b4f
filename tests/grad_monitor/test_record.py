"""The file of JSON lines, and how a resumed run goes on with it."""

import json
import math
from pathlib import Path

import pytest

from trainer_gradient_monitor.record import Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path / "gradients.jsonl")
    for step in (10, 20, 30):
        record.append({"step": step, "norm": step / 3})
    return record


def steps(record: Record) -> list[int]:
    return [json.loads(line)["step"] for line in record.path.read_text().splitlines()]


@pytest.mark.parametrize(("step", "left"), [(30, [10, 20, 30]), (25, [10, 20]), (9, []), (0, [])])
def test_lines_after_the_snapshot_are_removed(record: Record, step: int, left: list[int]) -> None:
    assert record.cut(step) == max(left, default=0)
    record.append({"step": 99})
    assert steps(record) == [*left, 99]


@pytest.mark.parametrize("rest", ['{"step": 40, "no', "garbage\n", '{"epoch": 1}\n', "\n"])
def test_a_line_that_was_not_finished_is_removed(record: Record, rest: str) -> None:
    with record.path.open("a") as file:
        file.write(rest)
    assert record.cut(100) == 30
    record.append({"step": 40})
    assert steps(record) == [10, 20, 30, 40]


def test_a_record_that_is_gone_starts_again(record: Record) -> None:
    record.path.unlink()
    assert record.cut(30) == 0
    record.append({"step": 40})
    assert steps(record) == [40]


def test_numbers_have_seven_digits_and_no_nan_is_written(record: Record) -> None:
    record.append({"step": 40, "a": [1 / 3, math.nan], "b": {"c": -math.inf}, "d": 3, "e": True})
    last = json.loads(record.path.read_text().splitlines()[-1])
    assert last == {"step": 40, "a": [0.3333333, None], "b": {"c": None}, "d": 3, "e": True}
