"""Two plugins, built and installed as wheels: one brings a hook, the other implements it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{distribution}"
version = "1.5"
[project.entry-points."trainer.callbacks"]
{name} = "{module}:{cls}"
[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""
BRINGS = """
from trainer_callback import TrainerCallback

class LookaheadHooks:
    def on_slow_weights_updated(self, trainer, distance):
        "After the slow weights have moved."

class Lookahead(TrainerCallback):
    hookspecs = LookaheadHooks

    def on_step_end(self, trainer):
        trainer.hook.on_slow_weights_updated(trainer=trainer, distance=0.25)
"""
IMPLEMENTS = """
from trainer_callback import TrainerCallback

class Distance(TrainerCallback):
    def on_slow_weights_updated(self, trainer, distance):
        trainer.log({"distance": distance})
"""
TINY = (
    *("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--batch_size", "2"),
    *("--max_steps", "2", "--lr_schedule", "constant", "--device", "cpu", "--quiet"),
)

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def train_lm(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command, with both wheels installed."""
    place, site = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str, cwd: Path = place) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    for distribution, name, cls, code in (
        ("dist-lookahead", "lookahead", "Lookahead", BRINGS),
        ("dist-distance", "distance", "Distance", IMPLEMENTS),
    ):
        source, module = tmp_path_factory.mktemp("source"), f"x_{name}"
        (source / f"{module}.py").write_text(code)
        text = PROJECT.format(distribution=distribution, name=name, module=module, cls=cls)
        (source / "pyproject.toml").write_text(text)
        built = run("-m", "build", "--wheel", "--no-isolation", cwd=source)
        assert built.returncode == 0, built.stdout + built.stderr
        wheel = str(next((source / "dist").glob("*.whl")))
        quietly = ("-q", "--no-deps", "--no-index", "--target", str(site), wheel)
        installed = run("-m", "pip", "install", *quietly)
        assert installed.returncode == 0, installed.stderr
    (place / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    command = "import sys; from trainer_lm.cli import main; sys.exit(main())"
    given = ("--dataset", "tiny.txt", "--cache_dir", "tokens", "--output_dir", "out", "--overwrite")
    return lambda *words: run("-c", command, *given, *TINY, *words)


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
