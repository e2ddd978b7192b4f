"""The search leaves no trace, tells what it has found, and applies it where that is asked for."""

import json
import logging
import math
import os
import random
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from trainer import Loss, Run, Trainer, TrainerConfig
from trainer.testing import Recorder
from trainer_callback import TrainerCallback, UsageError
from trainer_lr_finder import LRFinderCallback


def read(tmp_path):
    return json.loads((tmp_path / "run" / "lr_finder.json").read_text())


class Start(TrainerCallback):
    """Notes all that a run begins with, and each batch."""

    after = ("lr_finder",)

    def __init__(self):
        self.batches = []

    def on_epoch_start(self, trainer, epoch):
        if epoch == 0:
            self.state = {
                "model": {k: v.clone() for k, v in trainer.model.state_dict().items()},
                "optimizer": trainer.optimizer.state_dict(),
                "scheduler": trainer.scheduler.state_dict() if trainer.scheduler else None,
                "scale": trainer.loss_scale,
                "torch": torch.get_rng_state().tolist(),
                "numpy": numpy.random.get_state()[1].tolist(),
                "python": random.getstate(),
            }

    def on_batch_start(self, batch):
        self.batches.append(batch[0].clone())


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def draws(model, batch):
    """A loss that draws from all generators."""
    noise = random.random() + numpy.random.rand()
    return nn.functional.mse_loss(model(batch[0]), batch[1]) * (1 + 0.01 * noise)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=["plain", "accumulated", "bf16", "fp16"],
)
def test_a_run_with_it_ends_in_the_same_bits(make, config):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    alone, beside, ends = Start(), Start(), []
    for seen, finder in ((alone, ()), (beside, (LRFinderCallback(1e-5, steps=25),))):
        trainer = make(*finder, seen, scheduler=schedule, loss_fn=draws, overwrite=True, **config)
        trainer.train()
        ends.append((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    assert same(alone.state, beside.state)
    assert same(alone.batches, beside.batches)
    assert same(*ends)


def test_what_it_finds_is_written_logged_and_drawn(make, tmp_path):
    recorder = Recorder()
    make(LRFinderCallback(1e-5, 10, steps=40), recorder).train()
    found = read(tmp_path)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 40
    assert found["rates"][0] == 1e-5
    assert {*found["suggested"]} == {"valley", "steepest"}
    assert not found["applied"]
    logged = [call["metrics"] for call in recorder.of("on_log")]
    wanted = {f"lr_finder/{name}": rate for name, rate in found["suggested"].items()}
    assert wanted in logged
    assert (tmp_path / "run" / "lr_finder.png").stat().st_size > 10_000


def test_the_rate_found_trains_better_than_one_that_is_far_too_low(make, tmp_path):
    low = make(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-6))
    slow = low.train().val_loss
    finder = LRFinderCallback(1e-5, 10, steps=40, apply=True)
    other = make(
        finder, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-6), overwrite=True
    )
    assert other.train().val_loss < slow - 0.3


def test_what_is_applied_reaches_groups_and_schedule(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    class Rates(TrainerCallback):
        def on_batch_start(self, trainer):
            self.first = getattr(self, "first", None) or [
                group["lr"] for group in trainer.optimizer.param_groups
            ]

    def optimizer(model):
        groups = [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 3e-3}]
        return torch.optim.AdamW(groups, lr=1e-3)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)

    rates = Rates()
    trainer = make(
        LRFinderCallback(1e-5, 10, steps=40, apply=True),
        rates,
        optimizer=optimizer,
        scheduler=schedule,
    )
    trainer.train()
    rate = read(tmp_path)["suggested"]["valley"]
    assert trainer.scheduler.base_lrs == pytest.approx([rate, 3 * rate])
    assert rates.first == pytest.approx([rate / 10, 3 * rate / 10])
    assert "the learning rate is" in caplog.text


def test_a_rate_that_diverges_ends_the_search(make, tmp_path):
    make(
        LRFinderCallback(1e-3, 1e6, steps=60),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
    ).train()
    found = read(tmp_path)
    assert len(found["rates"]) < 60
    assert all(map(math.isfinite, found["losses"]))


def test_a_loss_that_is_nan_ends_the_search_and_no_run(make, tmp_path, caplog):
    calls = []

    def loss_fn(model, batch):
        calls.append(None)
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        return loss * math.nan if len(calls) == 3 else loss

    result = make(LRFinderCallback(steps=20), loss_fn=loss_fn).train()
    assert result.status == "finished"
    assert len(read(tmp_path)["rates"]) == 2
    assert "no rate is suggested" in caplog.text


def test_a_loss_that_does_not_fall_suggests_nothing_and_applies_nothing(make, tmp_path, caplog):
    trainer = make(LRFinderCallback(1e-12, 1e-11, steps=20, apply=True))
    trainer.train()
    assert read(tmp_path)["suggested"] == {} or trainer.optimizer.param_groups[0]["lr"] < 1e-10


def test_sums_are_losses_too(make, tmp_path):
    def loss_fn(model, batch):
        each = (model(batch[0]) - batch[1]).square()
        return Loss(each.sum(), each.numel())

    make(LRFinderCallback(1e-5, 10, steps=40), loss_fn=loss_fn).train()
    assert read(tmp_path)["losses"][0] == pytest.approx(5, abs=6)


def test_a_resumed_run_does_not_look_again(make, tmp_path):
    make(LRFinderCallback(1e-5, 10, steps=20), max_steps=4).train()
    (tmp_path / "run" / "lr_finder.json").unlink()
    make(LRFinderCallback(1e-5, 10, steps=20)).train(resume=True)
    assert not (tmp_path / "run" / "lr_finder.json").exists()


def test_a_run_that_writes_nowhere_logs_it_only(make, tmp_path):
    recorder = Recorder()
    make(LRFinderCallback(1e-5, 10, steps=40), recorder, output_dir=None).train()
    assert any("lr_finder/valley" in call["metrics"] for call in recorder.of("on_log"))
    assert not (tmp_path / "run").exists()


def test_a_loop_of_ones_own_is_refused():
    model = nn.Linear(4, 1)
    run = Run(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        config=TrainerConfig(epochs=1),
        callbacks=[LRFinderCallback(steps=10)],
        discover=False,
    )
    loader = list(torch.randn(4, 2, 4))
    run.use_loader(loader)
    with pytest.raises(UsageError, match="a loop of its own"), run.start():
        pass


def test_a_loader_that_gives_its_batches_once_is_refused():
    model = nn.Linear(4, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        (batch for batch in torch.randn(4, 2, 4)),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(epochs=1, max_steps=2),
        callbacks=[LRFinderCallback(steps=10)],
        discover=False,
    )
    with pytest.raises(UsageError):
        trainer.train()


@pytest.mark.parametrize("hold", [lambda base: base, lambda base: [base], lambda base: {"a": base}])
def test_an_optimizer_that_has_another_one_is_refused_before_it_has_a_trace(make, hold):
    bases = []

    class Around(torch.optim.Optimizer):
        def __init__(self, model):
            bases.append(torch.optim.Adam(model.parameters(), lr=1e-3))
            self.held = hold(bases[0])
            super().__init__(bases[0].param_groups, bases[0].defaults)
            self.param_groups = bases[0].param_groups

        def step(self, closure=None):
            bases[0].step()

    with pytest.raises(UsageError, match=r"another one in Around\.held"):
        make(LRFinderCallback(steps=10), optimizer=Around).train()
    assert not bases[0].state


SCRIPT = """
import json, os, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainer import Trainer, TrainerConfig
from trainer_lr_finder import LRFinderCallback

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
data = TensorDataset(x, x.sum(1, keepdim=True))
for callbacks in ([], [LRFinderCallback(1e-5, 10, steps=30)]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    result = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        DataLoader(data, batch_size=4, shuffle=True),
        loss_fn=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        config=TrainerConfig(epochs=1, output_dir="run", overwrite=True),
        callbacks=callbacks,
        progress=False,
    ).train()
    weights = nn.utils.parameters_to_vector(model.parameters()).tolist()
    print(json.dumps([len(callbacks), weights]) + "\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_two_processes_look_together_and_train_as_without_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(count for count, _ in lines) == [0, 0, 1, 1]
    assert len({tuple(weights) for _, weights in lines}) == 1
    assert len(read(tmp_path)["rates"]) > 10
