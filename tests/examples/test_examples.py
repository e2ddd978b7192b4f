"""The scripts of examples/ are short, say what they show, run without a warning, and learn."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
LEAST = {
    "image_classification": ("accuracy", 0.85),
    "segmentation": ("iou", 0.75),
    "text_classification": ("accuracy", 0.9),
}
MOST = {
    "gan": ("ring_error", 0.15),
    "reinforcement_learning": ("falls", 0.01),
    "study": ("best_loss", 0.4),
    "tabular_regression": ("rmse", 15.0),
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(name: str, place: Path, *words: str) -> str:
    """Returns what an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(name: str, printed: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", printed, re.MULTILINE)[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_what_it_shows(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    assert len(ast.get_docstring(ast.parse(text))) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_learns(name, tmp_path):
    printed = run(name, tmp_path)
    if name in LEAST:
        metric, bar = LEAST[name]
        assert read(metric, printed) > bar
    else:
        metric, bar = MOST[name]
        assert read(metric, printed) < bar


@pytest.mark.slow
def test_the_table_may_be_ones_own(tmp_path):
    rows = "".join(f"{n},{n % 7},{3 * n}\n" for n in range(200))
    (tmp_path / "mine.csv").write_text("a,b,target\n" + rows)
    assert read("rmse", run("tabular_regression", tmp_path, "mine.csv")) < 50
    assert not (tmp_path / "houses.csv").exists()
