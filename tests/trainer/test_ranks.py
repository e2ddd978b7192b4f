"""Several processes in one run: refused, until the trainer can do it."""

import os
import subprocess
import sys

import pytest

from trainer import ConfigError


def test_one_of_several_processes_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"one of 2 processes .* without torchrun"):
        tiny.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", ["1", ""])
def test_a_single_process_of_torchrun_trains(tiny, tmp_path, monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    assert tiny.trainer(tmp_path / "run").train().status == "finished"


def test_torchrun_with_two_processes_ends_both_with_exit_2_and_no_snapshot(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 400)
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer_lm"]
    words += ["--dataset", str(text), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRAINER_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode != 0
    assert "this is one of 2 processes" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.glob("run/snapshots/*"))
