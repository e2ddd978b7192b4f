"""The tracker of CALLBACKS.md has each event once, whatever kills the run."""

import json
import logging
import os
import signal
import sqlite3

import pytest
import torch

from trainer.writers.metrics_file import read_logged

RUN = """
import os, signal, sys
import torch
from torch import nn
from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback

{tracker}

class Kill(TrainerCallback):
    def on_batch_start(self, trainer):
        if trainer.step == {at}:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, trainer):
        trainer.log({{"odd": float("nan")}})

torch.manual_seed(1)
model = nn.Linear(4, 1)
Trainer(
    model,
    torch.optim.SGD(model.parameters(), lr=0.01),
    [torch.ones(2, 4)] * 10,
    loss_fn=lambda model, batch: model(batch).square().mean(),
    config=TrainerConfig(epochs=3, output_dir="run", snapshot_interval=7, log_interval=1),
    callbacks=[SqliteTracker(), Kill()],
    discover=False,
    progress=False,
).train(resume="auto")
"""


def execute(script, place):
    """Runs a script in this process, whose end it is."""
    code = 1
    try:
        os.chdir(place)
        logging.basicConfig(filename="log", force=True)
        torch.set_num_threads(1)
        exec(compile(script, "script", "exec"), {})
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("moments", [[3], [8], [14], [29], [2, 9, 9, 25], []])
def test_the_tracker_has_each_event_once(manual, tmp_path, moments):
    section = next(each for each in manual if each.title == "Writing a tracker")
    tracker = section.blocks[0].text
    assert len(tracker.split("class SqliteTracker")[1].splitlines()) <= 40
    codes = []
    for at in [*moments, -1]:
        child = os.fork()  # torch is there already
        if child == 0:
            execute(RUN.format(tracker=tracker, at=at), tmp_path)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [-signal.SIGKILL] * len(moments) + [0]
    assert "switched off" not in (tmp_path / "log").read_text()
    expected = []
    for line in map(json.loads, read_logged(tmp_path / "run/metrics.jsonl")):
        place = (line.pop("_event"), line.pop("step"))
        line.pop("epoch")
        expected += [(*place, name, str(value)) for name, value in line.items()]
    base = sqlite3.connect(tmp_path / "runs.db")
    query = "SELECT event, step, name, value FROM logged"
    assert sorted(base.execute(query)) == sorted(expected)
    ((run, name),) = base.execute("SELECT run, name FROM runs").fetchall()
    base.close()
    assert run == json.loads((tmp_path / "run/.run.json").read_bytes())["run_id"]
    assert name == "run"
