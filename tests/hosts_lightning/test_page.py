"""The page about Lightning says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
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


def test_processes_that_the_trainer_does_not_know_of_are_refused(tmp_path):
    (script,) = re.findall(r"```python file=train.py\n(.*?)```", PAGE, re.DOTALL)
    alone = script.replace("max_epochs=20,", 'max_epochs=2, accelerator="cpu", devices=1,')
    (tmp_path / "train.py").write_text(alone)
    words = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "train.py"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Lightning knows of 1 of 2 processes" in done.stderr
    assert not (tmp_path / "runs/lightning/plugins").exists()


def test_the_page_has_a_row_for_each_case():
    rows = dict(re.findall(r"^\| ([^|]+) \| ((?:same|approximate|this host)[^|]*) \|$", PAGE, re.M))
    cases = {case.name: MARKS.get(case.name, "same") for case in scenarios.CASES}
    assert {name: mark.split(":")[0] for name, mark in rows.items()} == {
        name: mark.split(":")[0] for name, mark in cases.items()
    }
