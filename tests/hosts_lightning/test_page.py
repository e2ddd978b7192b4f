"""The page about Lightning says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from .driver import MARKS, scenarios

PAGE = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text()


def test_the_script_of_the_page_trains_and_goes_on(run_script, tmp_path):
    (script,) = re.findall(r"```python file=train.py\n(.*?)```", PAGE, re.DOTALL)
    assert "finished epochs 640" in run_script(script)
    longer = script.replace("max_epochs=20", "max_epochs=21")
    assert "finished epochs 672" in run_script(longer)


def test_the_page_has_a_row_for_each_case():
    rows = dict(re.findall(r"^\| ([^|]+) \| ((?:same|approximate|this host)[^|]*) \|$", PAGE, re.M))
    cases = {case.name: MARKS.get(case.name, "same") for case in scenarios.CASES}
    assert {name: mark.split(":")[0] for name, mark in rows.items()} == {
        name: mark.split(":")[0] for name, mark in cases.items()
    }
