"""A trainer that is trained again starts as a new one, whatever ended the run before."""

import copy
import math

import pytest
import torch
from torch import nn

from trainer import NonFiniteError, RunOrderError, Trainer, TrainerConfig
from trainer_callback import CallbackError, SnapshotError, TrainerCallback, UsageError


class Logs(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, metrics, step):
        self.seen.append((step, dict(metrics)))


class Fail(TrainerCallback):
    """Raises, or spoils the loss, in one update of the first run."""

    def __init__(self, error=None, at=2):
        self.error, self.at, self.runs = error, at, 0

    def on_train_start(self, trainer):
        self.runs += 1

    def on_forward_end(self, trainer):
        if self.error is not None and self.runs == 1 and trainer.step == self.at:
            raise self.error


def make(fail, *, model=None, output_dir=None, **config):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    logs = Logs()

    def loss_fn(model, batch):
        loss = model(batch).square().mean()
        bad = fail.error is None and fail.runs == 1 and trainer.step == fail.at
        return loss * math.nan if bad else loss

    options = {"epochs": 2, "log_interval": 1, "gradient_accumulation_steps": 2, **config}
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4) * (i + 1) for i in range(9)],
        loss_fn=loss_fn,
        config=TrainerConfig(output_dir=output_dir, **options),
        callbacks=[logs, fail],
        discover=False,
    )
    return trainer, logs


ENDS = [
    (ValueError("ours"), CallbackError),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (None, NonFiniteError),
]


@pytest.mark.parametrize(("error", "ends"), ENDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fresh_run_after_a_failed_one_is_that_of_a_new_trainer(error, ends, precision):
    trainer, logs = make(Fail(error), precision=precision)
    with pytest.raises(ends):
        trainer.train()
    started = copy.deepcopy(trainer.model)
    logs.seen.clear()
    result = trainer.train()
    unspoilt = Fail(ValueError(), at=-1)
    fresh, fresh_logs = make(unspoilt, model=started, precision=precision)
    expected = fresh.train()
    assert logs.seen == fresh_logs.seen
    assert result.history == expected.history
    for ours, theirs in zip(trainer.model.parameters(), started.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("error", "ends"), ENDS)
def test_a_run_that_is_resumed_in_the_same_object_is_that_of_a_new_one(tmp_path, error, ends):
    options = {"snapshot_interval": 2, "snapshot_sync": True}
    weights = []
    for again in (True, False):
        place = tmp_path / str(again)
        trainer, _ = make(Fail(error), output_dir=place, **options)
        with pytest.raises(ends):
            trainer.train()
        if not again:
            trainer, _ = make(Fail(ValueError(), at=-1), output_dir=place, **options)
        trainer.train(resume=True)
        weights.append([p.clone() for p in trainer.model.parameters()])
    assert all(map(torch.equal, *weights))


def test_a_second_run_knows_nothing_of_the_first():
    seen = []

    class Look(Fail):
        def on_train_start(self, trainer):
            seen.append((trainer.step, dict(trainer.metrics), trainer.last_update_of_epoch))

    trainer, _ = make(Look(ValueError(), at=-1), max_steps=3)
    for _ in range(2):
        trainer.train()
        assert trainer.metrics
    assert seen == [(0, {}, False)] * 2


def test_a_request_of_a_run_before_is_no_request(tmp_path):
    class Ask(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.request_snapshot()

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4)] * 4,
        loss_fn=lambda model, batch: model(batch).mean(),
        config=TrainerConfig(epochs=1, output_dir=tmp_path, overwrite=True),
        callbacks=[Ask()],
        discover=False,
    )
    for _ in range(2):
        trainer.train()
        names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
        assert names == ["step-00000004"]


def test_a_run_after_a_resume_that_was_refused_is_that_of_a_new_trainer(tmp_path):
    fail = Fail(ValueError(), at=-1)
    trainer, logs = make(fail)
    (tmp_path / "no").mkdir()
    with pytest.raises((SnapshotError, UsageError)):
        trainer.train(resume=tmp_path / "no")
    assert trainer.train().steps == 10
    fresh, fresh_logs = make(Fail(ValueError(), at=-1))
    fresh.train()
    assert logs.seen == fresh_logs.seen


def test_training_inside_training_is_refused_and_the_run_goes_on():
    said = []

    class Nest(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 2:
                with pytest.raises(RunOrderError, match="this run has started already") as error:
                    outer.train()
                said.append(error)

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    outer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4)] * 4,
        loss_fn=lambda model, batch: model(batch).mean(),
        config=TrainerConfig(epochs=1),
        callbacks=[Nest()],
        discover=False,
    )
    assert outer.train().steps == 4
    assert said
    assert outer.train().steps == 4
