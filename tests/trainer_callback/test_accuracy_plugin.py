"""A plugin for any task whose outputs have logits, built and installed as a wheel: the accuracy of
each set of a validation, right over several processes, ignored labels and batches of any size.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import torch
from torch import nn
from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_callback.plugins import create

class Kill(TrainerCallback):
    def on_step_end(self, trainer):
        if trainer.step == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), 9)

generator = torch.Generator().manual_seed(0)
def make(count):
    inputs = torch.randn(count, 4, generator=generator)
    labels = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
    labels[::7] = -100
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, labels)]

train, val = make(24), make(29)  # of which the last batch has one
torch.manual_seed(0)
model = nn.Linear(4, 3)

def loss_fn(model, batch):
    logits = model(batch["inputs"])
    loss = nn.functional.cross_entropy(logits, batch["labels"], reduction="sum") / 4
    return loss, ({"logits": logits} if os.environ.get("AS_DICT") else logits)

if __name__ == "__main__":
    loaders = [torch.utils.data.DataLoader(each, batch_size=4, shuffle=n == 0)
               for n, each in enumerate((train, val))]
    rate = float(os.environ.get("RATE", "0.1"))
    Trainer(
        model, torch.optim.SGD(model.parameters(), lr=rate), *loaders, loss_fn=loss_fn,
        config=TrainerConfig(
            epochs=2, device="cpu", output_dir=sys.argv[1], eval_interval=2, snapshot_interval=1,
        ),
        callbacks=[create("accuracy"), Kill()], discover=False, progress=False,
    ).train(resume="auto")
    items = [each for each in val if each["labels"] != -100]
    hits = sum(int(model(each["inputs"]).argmax() == each["labels"]) for each in items)
    if os.environ.get("RANK", "0") == "0":
        print("counted one by one:", hits / len(items))
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, wheels: Callable[..., Path]) -> Run:
    """Runs Python where the wheel is installed and the script lies."""
    site, place = wheels("accuracy"), tmp_path_factory.mktemp("place")
    (place / "script.py").write_text(SCRIPT)

    def run_python(*words: str, **named: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site), **named}
        return subprocess.run(
            [sys.executable, *words],
            cwd=place, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run_python


def read_accuracies(place: Path) -> list[tuple[int, float]]:
    lines = (place / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["val_accuracy"]) for row in rows if "val_accuracy" in row]


@pytest.mark.slow
def test_it_counts_as_one_would_by_hand(run: Run, tmp_path: Path) -> None:
    done = run("script.py", str(tmp_path / "out"), AS_DICT="1")
    assert done.returncode == 0, done.stderr
    by_hand = float(done.stdout.rpartition("counted one by one:")[2])
    found = read_accuracies(tmp_path / "out")
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    assert found[-1] == (12, by_hand)
    assert len({accuracy for _, accuracy in found}) > 1


@pytest.mark.slow
def test_killed_inside_an_epoch_and_resumed_it_has_the_same_numbers(
    run: Run, tmp_path: Path
) -> None:
    assert run("script.py", str(tmp_path / "whole")).returncode == 0
    killed = run("script.py", str(tmp_path / "killed"), KILL_AT="9")
    assert killed.returncode == -signal.SIGKILL
    resumed = run("script.py", str(tmp_path / "killed"))
    assert resumed.returncode == 0, resumed.stderr
    whole = read_accuracies(tmp_path / "whole")
    assert len(whole) == 6
    assert read_accuracies(tmp_path / "killed") == whole


@pytest.mark.slow
def test_two_processes_count_each_item_once(run: Run, tmp_path: Path) -> None:
    alone = run("script.py", str(tmp_path / "alone"), RATE="0")
    assert alone.returncode == 0, alone.stderr
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(*start, "script.py", str(tmp_path / "two"), RATE="0")
    assert done.returncode == 0, done.stderr
    expected = {accuracy for _, accuracy in read_accuracies(tmp_path / "alone")}
    assert len(expected) == 1  # the weights stay as they are
    assert {accuracy for _, accuracy in read_accuracies(tmp_path / "two")} == expected
