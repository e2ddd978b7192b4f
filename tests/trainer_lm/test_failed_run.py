"""A run that cannot go on ends in a line that names flags, with exit code 1."""

import math
import os
import subprocess
import sys

import pytest
import torch

from trainer_lm.cli import main
from trainer_lm.model import GPT

MEMORY = """\
train-lm: the device is out of memory in epoch 0, update 1 when 2.00 GiB more were wanted. \
Use a smaller --batch_size and as much more of --gradient_accumulation_steps, --precision bf16, \
or a smaller model or smaller inputs. --block_size is the length of the inputs."""
NAN = """\
train-lm: the training loss is not finite (nan) at epoch 0, update 1. The weights are those before \
it. It is the first one: look for NaN in the data. Lower the learning rate, clip with \
--max_grad_norm, or use --on_nonfinite skip"""


@pytest.mark.parametrize(("forward", "said"), [("memory", MEMORY), ("nan", NAN)])
def test_the_line_names_flags(forward, said, tmp_path, monkeypatch, capsys):
    original = GPT.forward

    def spoil(model, **batch):
        if forward == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        sums = original(model, **batch)
        return sums._replace(total=sums.total * math.nan)

    monkeypatch.setattr(GPT, "forward", spoil)
    sizes = ("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8")
    code = main(
        [*sizes, "--max_steps", "2", "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == 1
    assert next(line for line in lines if line.startswith("train-lm:")).startswith(said)
    assert not any("Traceback" in line for line in lines)


def test_without_a_compiler_compilation_is_refused_in_a_line(tmp_path):
    sizes = ("--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8")
    words = ("--compile", "--max_steps", "2", "--device", "cpu", "--output_dir", tmp_path / "run")
    ran = subprocess.run(
        [sys.executable, "-m", "trainer_lm", *sizes, *words],
        env=os.environ | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    said = "train-lm: --compile: torch compiles with a C++ compiler, and finds none. Install one"
    assert ran.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in ran.stderr
