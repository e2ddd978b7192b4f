"""Schedulers that are stepped per epoch, or by a metric; and one that counts other things."""

import logging

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader

from trainer import ConfigError, Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback, UsageError

from .conftest import difference, newest_state, run_ranks

DATA = torch.arange(32.0).reshape(8, 4).sin()


class Rates(TrainerCallback):
    """Keeps the learning rate of each update, and of each epoch when it has ended."""

    def __init__(self):
        self.updates, self.epochs = [], []

    def on_backward_end(self, trainer):
        self.updates.append(trainer.optimizer.param_groups[0]["lr"])

    def on_epoch_start(self, trainer):
        self.epochs.append(trainer.optimizer.param_groups[0]["lr"])


class Worse(TrainerCallback):
    """Logs a metric that never gets better, where the trainer is handed one."""

    def on_epoch_end(self, trainer):
        if trainer.is_main_process:
            trainer.log({"own": float(trainer.epoch)})


def make(schedule=None, *, place=None, callbacks=(), loader=None, validates=True, **config):
    """Four updates an epoch; the loss of a validation gets better for ever."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Trainer(
        model,
        optimizer,
        DataLoader(DATA, batch_size=2) if loader is None else loader,
        [DATA] if validates else None,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=None if schedule is None else schedule(optimizer),
        config=TrainerConfig(output_dir=place, **config),
        callbacks=callbacks,
        discover=False,
    )


def halving(optimizer):
    return schedules.StepLR(optimizer, 1, gamma=0.5)


def plateau(optimizer):
    """Takes every value for a bad one but the first: nothing is better by so much."""
    return schedules.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
    )


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_scheduler_is_stepped_once_per_epoch():
    rates = Rates()
    make(halving, epochs=3, scheduler_interval="epoch", callbacks=[rates]).train()
    assert rates.updates == [1.0] * 4 + [0.5] * 4 + [0.25] * 4


def test_an_epoch_that_is_cut_does_not_count():
    trainer = make(halving, epochs=3, max_steps=6, scheduler_interval="epoch")
    trainer.train()
    assert trainer.scheduler.last_epoch == 1


@pytest.mark.parametrize("schedule", [halving, plateau])
@pytest.mark.parametrize("first", [{"max_steps": 6}, {"epochs": 2}], ids=["inside", "end"])
def test_a_resume_is_exact(tmp_path, schedule, first):
    options = {"scheduler_interval": "epoch", "snapshot_epochs": True}
    if schedule is plateau:
        options["scheduler_monitor"] = "val_loss"
    whole = make(schedule, place=tmp_path / "whole", **{**options, "epochs": 4})
    whole.train()
    make(schedule, place=tmp_path / "cut", **{"epochs": 4, **options, **first}).train()
    make(schedule, place=tmp_path / "cut", **options, epochs=4).train(resume=True)
    states = [newest_state(tmp_path / name) for name in ("whole", "cut")]
    assert difference(*(each["scheduler"] for each in states)) is None
    assert difference(*(each["optimizer"] for each in states)) is None
    assert states[0]["scheduler"]["last_epoch"] == 4


def test_a_plateau_is_stepped_behind_the_validation_of_each_epoch():
    rates = Rates()
    options = {"scheduler_monitor": "val_loss", "eval_interval": 2, "callbacks": [rates]}
    make(plateau, epochs=3, scheduler_interval="epoch", **options).train()
    assert rates.updates == [1.0] * 8 + [0.5] * 4


def test_a_plateau_is_stepped_after_each_validation():
    rates = Rates()
    options = {"scheduler_monitor": "val_loss", "eval_interval": 2, "callbacks": [rates]}
    make(plateau, epochs=2, **options).train()
    assert rates.updates == [1.0] * 4 + [0.5] * 2 + [0.25] * 2


def test_a_plateau_inside_an_epoch_resumes_exactly(tmp_path):
    options = {"scheduler_monitor": "val_loss", "eval_interval": 1, "epochs": 2}
    whole = make(plateau, place=tmp_path / "whole", **options)
    whole.train()
    make(plateau, place=tmp_path / "cut", **options, max_steps=3).train()
    make(plateau, place=tmp_path / "cut", **options).train(resume=True)
    states = [newest_state(tmp_path / name)["scheduler"] for name in ("whole", "cut")]
    assert difference(*states) is None


def test_a_subclass_and_one_that_asks_for_metrics_are_stepped_by_one():
    class Own(schedules.ReduceLROnPlateau):
        pass

    class Foreign:
        seen = ()

        def step(self, metrics):
            self.seen = (*self.seen, metrics)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    trainer = make(Own, scheduler_monitor="val_loss", epochs=2)
    trainer.train()
    assert trainer.scheduler.last_epoch == 2
    trainer = make(lambda _: Foreign(), scheduler_monitor="train_loss", epochs=2, validates=False)
    result = trainer.train()
    assert trainer.scheduler.seen == tuple(row["train_loss"] for row in result.history)


@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_two_processes_follow_a_metric_that_one_of_them_logs(interval):
    def work(rank):
        trainer = make(
            plateau,
            epochs=3,
            callbacks=[Worse()],
            scheduler_monitor="own",
            scheduler_interval=interval,
        )
        trainer.train()
        assert trainer.optimizer.param_groups[0]["lr"] == 0.25

    assert run_ranks(work) == [0, 0]


def test_a_misspelt_metric_is_refused_before_the_first_step():
    trainer = make(plateau, scheduler_monitor="val_los")
    text = r"is 'val_los', and this run will have no such metric, but .*Did you mean 'val_loss'"
    with pytest.raises(ConfigError, match=text):
        trainer.train()
    assert trainer.step == 0


def test_one_that_a_callback_might_log_is_refused_at_the_first_validation():
    trainer = make(plateau, scheduler_monitor="val_los", eval_interval=1, callbacks=[Rates()])
    text = r"is 'val_los', and there is no such metric at update 1, but val_loss\. Did you mean"
    with pytest.raises(ConfigError, match=text):
        trainer.train()
    options = {"scheduler_interval": "epoch", "callbacks": [Rates()]}
    trainer = make(plateau, scheduler_monitor="val_los", **options)
    with pytest.raises(ConfigError, match=r"no such metric at update 4, but .*val_loss"):
        trainer.train()


REFUSED = {
    "no metric": (
        (plateau, {}),
        r"waits for a metric, and none is named.*scheduler_monitor='val_loss'",
    ),
    "no validation": (
        (plateau, {"scheduler_monitor": "val_loss", "validates": False}),
        r"is 'val_loss', and there is no validation.*scheduler_monitor='train_loss'",
    ),
    "nobody follows": (
        (halving, {"scheduler_monitor": "val_loss"}),
        r"no scheduler follows a metric \(there is StepLR\)",
    ),
    "no scheduler": ((None, {"scheduler_interval": "epoch"}), "there is no scheduler"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stepped_is_refused_before_the_first_step(case):
    (schedule, options), text = REFUSED[case]
    rates = Rates()
    with pytest.raises(ConfigError, match=text):
        make(schedule, callbacks=[rates], **options).train()
    assert rates.updates == []


def test_a_step_that_wants_something_else_is_refused():
    class ByEpoch:
        def step(self, epoch, metric=None):
            pass

        state_dict = load_state_dict = step

    with pytest.raises(ConfigError, match=r"ByEpoch\.step wants epoch, and a scheduler is stepped"):
        make(lambda _: ByEpoch())


def run_by_hand(names, interval, updates=False):
    models = {name: nn.Linear(4, 1) for name in names}
    optimizers = {n: torch.optim.SGD(m.parameters(), lr=1.0) for n, m in models.items()}
    run = Run(
        models,
        optimizers,
        scheduler={name: halving(optimizers[name]) for name in names},
        config=TrainerConfig(epochs=2, scheduler_interval=interval),
        discover=False,
    )
    loader = [DATA] * 3
    with run.start():
        for _ in [0] if updates else run.epochs():
            for batch in run.updates() if updates else run.batches(loader):
                for name in names:
                    run.backward(run.module[name](batch).square().mean(), name)
                    run.step(name)
    return {name: each.param_groups[0]["lr"] for name, each in optimizers.items()}


def test_several_schedulers_of_a_loop_of_ones_own_are_stepped_per_epoch():
    assert run_by_hand(["a", "b"], "epoch") == {"a": 0.25, "b": 0.25}
    assert run_by_hand(["a", "b"], "update") == {"a": 0.5**6, "b": 0.5**6}


def test_a_loop_without_epochs_is_refused():
    with pytest.raises(UsageError, match="no epochs to step a scheduler by"):
        run_by_hand(["a"], "epoch", updates=True)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = TrainerConfig(scheduler_monitor="train_loss")
    run = Run(model, optimizer, scheduler=plateau(optimizer), config=config, discover=False)
    with pytest.raises(UsageError, match="a metric of a validation"), run.start():
        run.updates()


EPOCHWISE = {
    "StepLR": lambda o: schedules.StepLR(o, 2, gamma=0.1),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.8),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 3], gamma=0.1),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
}


@pytest.mark.parametrize("name", EPOCHWISE)
def test_a_scheduler_that_counts_epochs_is_warned_of_once(name, caplog):
    many = [DATA] * 20
    make(EPOCHWISE[name], loader=many, epochs=4, validates=False).train()
    (text,) = warned(caplog)
    assert text.startswith(f"{name} is stepped once per update, 80 times: ")
    assert text.endswith("If it counts epochs, use scheduler_interval='epoch'.")
    caplog.clear()
    make(EPOCHWISE[name], loader=many, epochs=4, scheduler_interval="epoch").train()
    assert warned(caplog) == []


def test_a_loop_of_ones_own_is_warned_where_it_names_its_loader(caplog):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = schedules.StepLR(optimizer, 2, gamma=0.1)
    run = Run(model, optimizer, scheduler=scheduler, config=TrainerConfig(epochs=2), discover=False)
    with run.start():
        for _ in run.epochs():
            for batch in run.batches([DATA] * 10):
                run.backward(run.module(batch).square().mean())
                run.step()
    assert [text.partition(":")[0] for text in warned(caplog)] == [
        "StepLR is stepped once per update, 20 times"
    ]


PER_UPDATE = {
    "StepLR": lambda o: schedules.StepLR(o, 20, gamma=0.1),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [40, 60], gamma=0.1),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 80),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 20),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 1.0, total_steps=80),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, total_iters=4), schedules.CosineAnnealingLR(o, 76)],
        milestones=[4],
    ),
}


@pytest.mark.parametrize("name", PER_UPDATE)
def test_one_that_counts_updates_is_not_warned_of(name, caplog):
    make(PER_UPDATE[name], loader=[DATA] * 20, epochs=4, validates=False).train()
    assert warned(caplog) == []


def test_ends_are_told_in_epochs(caplog):
    def linear(optimizer):
        return schedules.LinearLR(optimizer, 1.0, 0.0, total_iters=2)

    make(linear, epochs=4, scheduler_interval="epoch", validates=False).train()
    (text,) = warned(caplog)
    assert "the learning rate is 0 from epoch 2 on, and the run goes on to epoch 4" in text
    with pytest.raises(ConfigError, match=r"ends at epoch 3 \(total_steps\), and this run at"):
        make(
            lambda o: schedules.OneCycleLR(o, 1.0, total_steps=3),
            epochs=4,
            scheduler_interval="epoch",
        ).train()


def test_a_schedule_of_updates_that_is_stepped_per_epoch_is_warned_of(caplog):
    def cycle(optimizer):
        return schedules.OneCycleLR(optimizer, 1.0, total_steps=80)

    make(cycle, epochs=4, scheduler_interval="epoch").train()
    (text,) = warned(caplog)
    assert text.startswith("OneCycleLR has 80 steps, and is stepped 4 times, once per epoch.")


def test_another_interval_at_a_resume_is_told(tmp_path, caplog):
    make(halving, place=tmp_path, epochs=2).train()
    make(halving, place=tmp_path, epochs=4, scheduler_interval="epoch").train(resume=True)
    assert any("scheduler_interval was 'update' in the snapshot's" in t for t in warned(caplog))
