"""The benchmarks still run: shortened, those that are quick. Their figures are no test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "words",
    [
        "dispatch.py --rounds 2",
        "snapshot.py --rounds 1 --steps 3 --layers 0 --width 8",
        "gpu.py --tiny --device cpu --no_compile --rounds 2",
    ],
)
def test_a_benchmark_runs(words: str, tmp_path: Path) -> None:
    command = [sys.executable, *words.split(), "--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "found.json").stat().st_size > 0


def test_what_a_card_costs_is_known_where_another_trainer_fails(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text("")  # which has none of its names
    words = "gpu.py --tiny --device cpu --no_compile --rounds 1 --sides Lightning"
    command = [sys.executable, *words.split(), "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=BENCHMARKS, check=True, env=environment, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert "LightningModule" in found["left_out"]["Lightning"]
    assert "Lightning" not in found["results"]["large"]
    assert found["results"]["snapshots"]["bytes"] > 0


def test_every_benchmark_can_be_imported() -> None:
    names = [path.stem for path in sorted(BENCHMARKS.glob("*.py")) if "peer" not in path.stem]
    code = f"import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, check=True, timeout=300)
