"""What the OpenMP library under torch is told, as it prints it itself."""

import os
import subprocess
import sys

import pytest
import torch

CODE = """
from trainer_lm.cli import main
words = ["--dataset=tiny.txt", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8"]
raise SystemExit(main([*words, "--quiet", "--max_steps=1"]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.openmp.is_available(),
    reason="the variable is of GNU OpenMP, which torch has on Linux",
)
@pytest.mark.parametrize(("chosen", "spins"), [(None, "20000"), ("ACTIVE", "30000000000")])
def test_waiting_threads_spin_for_a_short_time_unless_the_user_wants_otherwise(
    tmp_path, chosen, spins
):
    environment = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("OMP_WAIT_POLICY", None)
    environment.pop("GOMP_SPINCOUNT", None)
    if chosen is not None:
        environment["OMP_WAIT_POLICY"] = chosen
    (tmp_path / "tiny.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
