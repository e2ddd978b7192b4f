"""The manual's script for a sharded model, as torchrun starts it."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file


@pytest.mark.slow
def test_sharded_script(files, tmp_path):
    """Twice: the second time it goes on from what the first has left, which is the end."""
    (tmp_path / "train_sharded.py").write_text(files["train_sharded.py"])
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "train_sharded.py"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    weights = load_file(tmp_path / "runs" / "sharded" / "final" / "model.safetensors")
    assert weights["0.weight"].shape == (256, 64)
    (snapshot,) = (tmp_path / "runs" / "sharded" / "snapshots").iterdir()
    assert snapshot.name == "step-00000032"
