"""A plugin that changes what is trained, built and installed as a wheel: killed and resumed, a run
with it ends in the same bits.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "dist-unfreeze"
version = "1.0"
[project.entry-points."trainer.callbacks"]
unfreeze = "x_unfreeze:UnfreezeAt"
[tool.hatch.build.targets.wheel]
only-include = ["x_unfreeze.py"]
"""
KILLS = """
import os

def kill(self, trainer):
    if trainer.step == int(os.environ.get("KILL_AT", 0)):
        os.kill(os.getpid(), 9)

UnfreezeAt.on_step_end = kill
"""
WORDS = (
    *("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--batch_size", "8"),
    *("--epochs", "2", "--lr_schedule", "constant", "--device", "cpu", "--quiet"),
    *("--dataset", "tiny.txt", "--cache_dir", "tokens", "--snapshot_interval", "1"),
    *("--unfreeze", "--unfreeze_prefix", "blocks", "--resume", "auto"),
)


@pytest.mark.slow  # six starts of the real command
def test_a_run_of_the_plugin_in_the_manual_is_resumed_from_any_epoch(tmp_path: Path) -> None:
    site, source = tmp_path / "site", tmp_path / "source"
    source.mkdir()
    manual = (ROOT / "CALLBACKS.md").read_text()
    (code,) = re.findall(r"```python\n(class UnfreezeAt.*?)```", manual, re.DOTALL)
    module = f"from trainer_callback import TrainerCallback\n\n{code}{KILLS}"
    (source / "x_unfreeze.py").write_text(module)
    (source / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)

    def run(*words: str, cwd: Path = tmp_path, **named: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), **named}
        return subprocess.run(
            [sys.executable, *words],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    built = run("-m", "build", "--wheel", "--no-isolation", cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = str(next((source / "dist").glob("*.whl")))
    quietly = ("-q", "--no-deps", "--no-index", "--target", str(site), wheel)
    assert run("-m", "pip", "install", *quietly).returncode == 0

    def train(place: str, kill: int = 0) -> int:
        command = "import sys; from trainer_lm.cli import main; sys.exit(main())"
        done = run("-c", command, *WORDS, "--output_dir", place, KILL_AT=str(kill))
        assert kill or done.returncode == 0, done.stderr
        return done.returncode

    train("whole")
    finals = tmp_path / "whole" / "snapshots"
    last = max(int(each.name.rpartition("-")[2]) for each in finals.iterdir())
    for at in (last // 4, 3 * last // 4):  # in the first epoch, and in the second
        assert train(f"killed {at}", kill=at) == -signal.SIGKILL
        train(f"killed {at}")
    found = [each.read_bytes() for each in sorted(tmp_path.glob("*/final/model.safetensors"))]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
