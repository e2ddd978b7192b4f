"""A plugin that changes what is trained, built and installed as a wheel: killed and resumed, a run
with it ends in the same bits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
def test_a_run_of_the_plugin_in_the_manual_is_resumed_from_any_epoch(
    tmp_path: Path, wheels: Callable[..., Path]
) -> None:
    site = wheels("unfreeze", more=KILLS)
    (tmp_path / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)

    def train(place: str, kill: int = 0) -> int:
        command = "import sys; from trainer_lm.cli import main; sys.exit(main())"
        environment = {**os.environ, "PYTHONPATH": str(site), "KILL_AT": str(kill)}
        done = subprocess.run(
            [sys.executable, "-c", command, *WORDS, "--output_dir", place],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
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
