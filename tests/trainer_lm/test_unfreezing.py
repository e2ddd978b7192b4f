"""A plugin that changes what is trained, built and installed as a wheel: killed and resumed, a run
with it ends in the same bits.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_lm.cli import main

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


@pytest.mark.slow  # five runs of the command
def test_a_run_of_the_plugin_in_the_manual_is_resumed_from_any_epoch(
    tmp_path: Path, wheels: Callable[..., Path], forked: Callable[..., int | None]
) -> None:
    site = wheels("unfreeze", more=KILLS)
    (tmp_path / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)

    def work(place: str, kill: int) -> None:
        os.environ["KILL_AT"] = str(kill)
        os.chdir(tmp_path)
        sys.path.insert(0, str(site))
        sys.exit(main([*WORDS, "--output_dir", place]))

    def train(place: str, kill: int = 0) -> int | None:
        code = forked(work, place, kill)
        assert kill or code == 0
        return code

    train("whole")
    finals = tmp_path / "whole" / "snapshots"
    last = max(int(each.name.rpartition("-")[2]) for each in finals.iterdir())
    for at in (last // 4, 3 * last // 4):  # in the first epoch, and in the second
        assert train(f"killed {at}", kill=at) == -signal.SIGKILL
        train(f"killed {at}")
    found = [each.read_bytes() for each in sorted(tmp_path.glob("*/final/model.safetensors"))]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
