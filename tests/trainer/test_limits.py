"""Fewer batches than the loaders have: `max_train_batches`, `max_val_batches`, and a dry run."""

import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import ConfigError, Run, RunOrderError, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

ROWS = torch.arange(40.0, dtype=torch.float64).reshape(20, 2)


class Seen(TrainerCallback):
    def __init__(self):
        self.batches = []
        self.hooks = []
        self.files = set()

    def on_batch_start(self, batch):
        self.batches.append(int(batch[0][0, 0]))

    def on_log(self, metrics):
        self.hooks.append("on_log")

    def on_validation_end(self, metrics):
        self.hooks.append("on_validation_end")

    def on_epoch_end(self, metrics):
        self.hooks.append("on_epoch_end")

    def on_snapshot_saved(self, path):
        self.hooks.append("on_snapshot_saved")
        self.files.add(path)

    def on_train_end(self, trainer, result):
        self.hooks.append("on_train_end")
        self.files.add(trainer.output_dir)


def mean_of(model, batch):
    return model(batch[0]).mean()


def load(size=2):
    return DataLoader(TensorDataset(ROWS), batch_size=size)


def make(train=None, val=None, callbacks=(), **config):
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        load() if train is None else train,
        val,
        loss_fn=mean_of,
        callbacks=list(callbacks),
        discover=False,
        config=TrainerConfig(**{"epochs": 2, **config}),
    )


@pytest.mark.parametrize(("limit", "count"), [(3, 3), (0.3, 3), (0.01, 1), (100, 10)])
def test_an_epoch_has_so_many_batches(limit, count):
    seen = Seen()
    result = make(callbacks=[seen], max_train_batches=limit).train()
    assert seen.batches == [4 * index for index in range(count)] * 2
    assert (result.epochs, result.steps) == (2, 2 * count)


def test_a_resume_goes_on_inside_a_short_epoch(tmp_path):
    class Stopper(TrainerCallback):
        def should_stop_training(self, trainer):
            return trainer.step == 4

    options = {"output_dir": tmp_path / "run", "max_train_batches": 3}
    seen = Seen()
    make(callbacks=[Stopper()], **options).train()
    result = make(callbacks=[seen], **options).train(resume=True)
    assert (seen.batches, result.steps) == ([4, 8], 6)


@pytest.mark.parametrize("name", ["max_train_batches", "max_val_batches"])
def test_a_share_of_a_loader_without_a_length_is_refused(name):
    class Stream:
        def __iter__(self):
            return iter(load())

    with pytest.raises(ConfigError, match=f"{name} is 0.5, a share of a loader whose length is"):
        make(Stream(), Stream(), **{name: 0.5})


@pytest.mark.parametrize("value", [0, -1, 1.5, 1.0, 0.0, True, "3", float("nan")])
def test_another_limit_is_refused(value):
    with pytest.raises(ConfigError, match="must be a number of batches, or a share between"):
        TrainerConfig(max_val_batches=value)


@pytest.mark.parametrize(("limit", "rows"), [(3, 6), (0.2, 4), (1, 2)])
def test_a_validation_has_so_many_batches_however_many_processes_there_are(
    tiny, tmp_path, limit, rows
):
    model = make().model
    expected = float(model(ROWS[:rows]).mean().detach())
    alone = make(val=load(), epochs=1, max_val_batches=limit).train().val_loss

    def work(rank):
        result = make(val=load(), epochs=1, max_val_batches=limit).train()
        (tmp_path / str(rank)).write_text(repr(result.val_loss))

    assert tiny.run_ranks(work) == [0, 0]
    found = [alone, *(float((tmp_path / str(rank)).read_text()) for rank in (0, 1))]
    assert found == [pytest.approx(expected, rel=1e-12)] * 3


def test_a_loop_without_a_loader_has_no_batches_to_count():
    model = nn.Linear(2, 1)
    config = TrainerConfig(max_steps=3, max_train_batches=2)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), config=config, discover=False)
    with run.start(), pytest.raises(RunOrderError, match="use max_steps"):
        run.updates()


def test_a_dry_run_tries_everything_and_leaves_nothing(tmp_path):
    place, seen = tmp_path / "run", Seen()
    options = {"output_dir": place, "gradient_accumulation_steps": 2, "log_interval": 50}
    result = make(val=load(), callbacks=[seen], epochs=9, dry_run=True, **options).train()
    assert (result.status, result.steps, len(seen.batches)) == ("finished", 2, 4)
    assert {*seen.hooks} == {
        *("on_log", "on_validation_end", "on_epoch_end", "on_snapshot_saved", "on_train_end")
    }
    assert not place.exists()
    assert len(seen.files) == 2
    assert not any(path.exists() for path in seen.files)


def test_a_dry_run_leaves_the_run_of_its_directory_alone(tmp_path):
    place = tmp_path / "run"
    make(output_dir=place).train()
    before = sorted(path.relative_to(place) for path in place.rglob("*"))
    make(output_dir=place, overwrite=True, dry_run=True).train(resume="auto")
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before


def test_a_dry_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    class Bad(TrainerCallback):
        def on_validation_end(self, trainer):
            raise KeyError("accuracy")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="failed in on_validation_end"):
        make(val=load(), callbacks=[Bad()], output_dir=tmp_path / "run", dry_run=True).train()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("resume", [True, "some/snapshot"])
def test_a_dry_run_goes_on_from_no_snapshot(tmp_path, resume):
    trainer = make(output_dir=tmp_path / "run", dry_run=True)
    with pytest.raises(ConfigError, match="a dry run starts anew"):
        trainer.train(resume=resume)


def test_processes_try_in_one_directory(tiny, tmp_path):
    def work(rank):
        trainer = make(val=load(), output_dir=tmp_path / str(rank), dry_run=True)
        result = trainer.train()
        (tmp_path / f"{rank}.txt").write_text(f"{result.steps} {trainer.output_dir}")

    assert tiny.run_ranks(work) == [0, 0]
    found = {path.read_text() for path in tmp_path.glob("*.txt")}
    assert len(found) == 1
    steps, place = found.pop().split(" ", 1)
    assert (steps, Path(place).exists()) == ("2", False)
    assert len([*tmp_path.iterdir()]) == 2


def test_max_time_leaves_time_for_the_last_validation():
    def validate():
        time.sleep(0.4)
        return {"val_loss": 1.0}

    model = nn.Linear(2, 1).double()
    run = Run(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        validate=validate,
        config=TrainerConfig(eval_interval=1, max_time=0.6),
        discover=False,
    )
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(load()):
                run.backward(run.module(batch[0]).mean())
                run.step()
    assert (run.result.stop_reason, run.result.steps) == ("max_time", 1)
