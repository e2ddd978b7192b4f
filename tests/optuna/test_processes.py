"""Two processes: the trial is in the main one, and both end together, in the same way."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "study.py"
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SCRIPT = """
import os, sys
import optuna, torch
from torch import nn
from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_optuna import OptunaCallback

class SaysNothing(TrainerCallback):
    def on_epoch_start(self, trainer):
        pass

trial = optuna.create_study().ask() if os.environ["RANK"] == "0" else None
model = nn.Linear(4, 1)
data = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=2)
trainer = Trainer(
    model,
    torch.optim.SGD(model.parameters(), lr=0.1),
    data,
    data,
    loss_fn=lambda model, batch: model(batch).square().mean(),
    config=TrainerConfig(epochs=2),
    callbacks=[SaysNothing(), OptunaCallback(trial, "score")],
)
try:
    trainer.train()
except Exception as error:
    print(f"rank {os.environ['RANK']}: {type(error).__name__}: {error}\\n", end="", flush=True)
"""


def start(script, place):
    return subprocess.run(
        [*RUN, str(script)],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_a_study_in_two_processes_prunes_and_goes_on(tmp_path):
    done = start(EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"^pruned (\d+)$", done.stdout, re.MULTILINE)[1]) > 0
    assert "each process goes by its own" not in done.stderr


@pytest.mark.slow
def test_a_failure_of_the_main_process_ends_the_other(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(SCRIPT)
    done = start(script, tmp_path)
    assert "rank 0: UsageError: OptunaCallback: by the end of the first epoch" in done.stdout
    assert "failed in the main process, whose message says why" in done.stdout
