"""The script of docs/accelerate.md runs, alone and in two processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

PAGE = (Path(__file__).parents[2] / "docs" / "accelerate.md").read_text()
(SCRIPT,) = re.findall(r"```python file=train.py\n(.*?)```", PAGE, re.DOTALL)

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))


def run(place, *words, fails=False):
    done = subprocess.run(
        [*words, "train.py"], cwd=place, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else done.stdout


def test_the_script_of_the_page_trains_and_goes_on(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT.replace("epochs=20", "epochs=2"))
    assert "finished epochs 32" in run(tmp_path, sys.executable)
    (tmp_path / "train.py").write_text(SCRIPT.replace("epochs=20", "epochs=3"))
    assert "finished epochs 48" in run(tmp_path, sys.executable)


def test_the_script_of_the_page_trains_in_two_processes(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT.replace("epochs=20", "epochs=2"))
    assert "finished epochs 16" in run(tmp_path, TORCHRUN, "--standalone", "--nproc_per_node", "2")


def test_processes_that_accelerate_does_not_know_of_are_refused(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT.replace("cpu=True, ", ""))
    said = run(tmp_path, TORCHRUN, "--standalone", "--nproc_per_node", "2", fails=True)
    assert "Accelerate knows of 1 of 2 processes" in said
    assert "write Accelerator(cpu=True)" in said
    assert not (tmp_path / "runs").exists()
