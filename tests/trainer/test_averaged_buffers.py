"""Averages of buffers, of which each process makes its own from the statistics of its batches."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_ema import EMACallback


class Statistics(TrainerCallback):
    """Notes the running means after each update, in each validation, and at the end."""

    after = ("ema",)

    def __init__(self):
        self.trained, self.validated, self.last = [], [], None

    def on_step_end(self, trainer):
        self.trained.append(trainer.model[0].running_mean.clone())

    def on_validation_start(self, trainer):
        self.validated.append(trainer.model[0].running_mean.tolist())

    def on_train_end(self, trainer):
        self.last = trainer.model[0].running_mean.tolist()


def make(*callbacks, **config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    data = torch.randn(24, 4)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=2),
        DataLoader(data[:8], batch_size=2),
        loss_fn=lambda model, batch: (model(batch) - 1).square().mean(),
        config=TrainerConfig(**{"epochs": 2, "device": "cpu", "eval_interval": 4, **config}),
        callbacks=callbacks,
        discover=False,
    )


def read(tmp_path):
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_processes_validate_and_end_with_the_averages_of_the_main_one(tiny, tmp_path):
    def work(rank):
        seen = Statistics()
        make(EMACallback(0.5, warmup=False, use_buffers=True), seen).train()
        average, averages = seen.trained[0], [seen.trained[0]]
        for each in seen.trained[1:]:
            average = 0.5 * average + 0.5 * each
            averages.append(average)
        own = [averages[step - 1].tolist() for step in (4, 6, 8, 12)]
        found = [own, seen.validated, seen.last]
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))

    assert tiny.run_ranks(work) == [0, 0]
    (own, validated, last), (other, *shown) = read(tmp_path)
    assert other != own
    assert shown == [validated, last]
    for one, two in zip(validated, own, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert last == pytest.approx(own[-1], abs=1e-6)


def test_a_resumed_run_validates_what_one_that_was_not_stopped_does(tiny, tmp_path):
    def work(rank, resume=False, **config):
        trainer = make(EMACallback(0.9, use_buffers=True), **config)
        result = trainer.train(resume=resume)
        (tmp_path / f"{rank}.json").write_text(json.dumps(result.history[-1]["val_loss"]))

    place = tmp_path / "run"
    assert tiny.run_ranks(lambda rank: work(rank)) == [0, 0]
    whole = read(tmp_path)
    assert tiny.run_ranks(lambda rank: work(rank, output_dir=place, max_steps=5)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, resume=True, output_dir=place)) == [0, 0]
    assert read(tmp_path) == whole
