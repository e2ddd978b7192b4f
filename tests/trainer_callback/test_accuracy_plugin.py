"""A plugin for any task whose outputs have logits, built and installed as a wheel: the accuracy of
each set of a validation, right over several processes, ignored labels and batches of any size.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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

Run = Callable[..., int | None]


@pytest.fixture(scope="module")
def site(wheels: Callable[..., Path]) -> Path:
    """A folder in which the wheel is installed and the script lies."""
    site = wheels("accuracy")
    (site / "script.py").write_text(SCRIPT)
    return site


@pytest.fixture
def run(site: Path, forked: Callable[..., int | None]) -> Run:
    """Runs the script where the wheel is; returns its exit code."""

    def work(place: Path, named: dict[str, str]) -> None:
        os.environ.update(named)
        sys.path.insert(0, str(site))
        sys.argv[1:] = [str(place)]
        torch.set_num_threads(1)
        with place.with_suffix(".txt").open("w") as said, contextlib.redirect_stdout(said):
            runpy.run_path(str(site / "script.py"), run_name="__main__")

    return lambda place, **named: forked(work, place, named)


def read_accuracies(place: Path) -> list[tuple[int, float]]:
    lines = (place / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["val_accuracy"]) for row in rows if "val_accuracy" in row]


@pytest.mark.slow
def test_it_counts_as_one_would_by_hand(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "out", AS_DICT="1") == 0
    said = (tmp_path / "out.txt").read_text()
    by_hand = float(said.rpartition("counted one by one:")[2])
    found = read_accuracies(tmp_path / "out")
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    assert found[-1] == (12, by_hand)
    assert len({accuracy for _, accuracy in found}) > 1


@pytest.mark.slow
def test_killed_inside_an_epoch_and_resumed_it_has_the_same_numbers(
    run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "killed", KILL_AT="9") == -signal.SIGKILL
    assert run(tmp_path / "killed") == 0
    whole = read_accuracies(tmp_path / "whole")
    assert len(whole) == 6
    assert read_accuracies(tmp_path / "killed") == whole


@pytest.mark.slow
def test_two_processes_count_each_item_once(run: Run, site: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "alone", RATE="0") == 0
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    named = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(site), "RATE": "0"}
    done = subprocess.run(
        [sys.executable, *start, "script.py", str(tmp_path / "two")],
        cwd=site, env={**os.environ, **named}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {accuracy for _, accuracy in read_accuracies(tmp_path / "alone")}
    assert len(expected) == 1  # the weights stay as they are
    assert {accuracy for _, accuracy in read_accuracies(tmp_path / "two")} == expected
