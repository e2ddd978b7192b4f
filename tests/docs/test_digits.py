"""The recipe of the digits: short, and each metric of each set is everywhere."""

import json
import os
import re
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import read_sections

NAMES = {f"{name}/{metric}" for name in ("clean", "noisy") for metric in ("loss", "accuracy", "f1")}


@pytest.fixture(scope="module")
def recipe():
    sections = read_sections("docs/cookbook.md")
    (found,) = [each for each in sections if each.title.startswith("Several validation sets")]
    return found.blocks[0].text


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    place = tmp_path_factory.mktemp("digits")
    more = "import json\nprint(json.dumps([result.history, result.weights.__dict__]))\n"
    script = recipe.replace("\ntrainer.train()\n", "\nresult = trainer.train()\n") + more
    (place / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place, done


def test_it_is_25_lines(recipe):
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 25


@pytest.mark.slow
def test_the_metrics_of_each_set_are_everywhere(run):
    place, done = run
    *matrix, last = done.stdout.splitlines()
    history, weights = json.loads(last)
    text = (place / "runs/digits/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    ends = [line for line in lines if "train_loss" in line]
    events = EventAccumulator(str(next((place / "runs/digits").rglob("events.out*")).parent))
    events.Reload()
    shown = re.findall(r"^epoch \d+ .*$", done.stderr, re.MULTILINE)
    assert len(shown) == len(ends) == len(history) > 5
    for name in NAMES:
        assert [line[name] for line in ends] == [row[name] for row in history]
        for row, text in zip(history, shown, strict=True):
            assert f"  {name} {row[name]:.4f}" in text
        assert name in events.Tags()["scalars"]
    best = max(history, key=lambda row: row["noisy/f1"])
    assert (weights["epoch"], weights["step"]) == (best["epoch"], best["step"])
    counts = [[int(n) for n in re.findall(r"\d+", row)] for row in matrix]
    right = sum(counts[n][n] for n in range(10))
    assert sum(map(sum, counts)) == 597
    assert right / 597 == pytest.approx(best["clean/accuracy"], abs=1e-9)
