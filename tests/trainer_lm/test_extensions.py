"""Two plugins, built and installed as wheels: one brings a hook, the other implements it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = (
    *("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--batch_size", "2"),
    *("--max_steps", "2", "--lr_schedule", "constant", "--device", "cpu", "--quiet"),
)

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def train_lm(tmp_path_factory: pytest.TempPathFactory, wheels: Callable[..., Path]) -> Command:
    """The command, with both wheels installed."""
    place = tmp_path_factory.mktemp("place")
    environment = {**os.environ, "PYTHONPATH": str(wheels("lookahead", "distance"))}
    (place / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    command = "import sys; from trainer_lm.cli import main; sys.exit(main())"
    given = ("--dataset", "tiny.txt", "--cache_dir", "tokens", "--output_dir", "out", "--overwrite")
    return lambda *words: subprocess.run(
        [sys.executable, "-c", command, *given, *TINY, *words],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_hook_of_one_wheel_is_called_in_a_callback_of_the_other(train_lm: Command) -> None:
    done = train_lm("--lookahead", "--distance", "--plugin_costs")
    assert done.returncode == 0, done.stderr
    assert any(
        {"distance", "on_slow_weights_updated", "2"} <= set(line.split())
        for line in done.stdout.splitlines()
    ), done.stdout


def test_without_the_plugin_that_brings_the_hook_the_run_is_refused(train_lm: Command) -> None:
    done = train_lm("--distance")
    assert done.returncode == 2
    said = done.stderr.strip()
    assert "'on_slow_weights_updated' is a hook of lookahead (dist-lookahead 1.5)" in said
    assert "Add it (--lookahead), or mark the method" in said
