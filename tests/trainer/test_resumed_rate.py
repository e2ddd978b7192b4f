"""The learning rate, changed where a run resumes."""

import logging

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from trainer import ConfigError, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

DATA = torch.arange(32.0).reshape(8, 4).sin()


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_backward_end(self, trainer):
        self.seen.append([group["lr"] for group in trainer.optimizer.param_groups])


def train(place, schedule=None, *, resume=False, rate=0.1, groups=1, rates=None, **config):
    """Four updates an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(groups)))
    parts = [{"params": p.parameters(), "lr": rate / 2**i} for i, p in enumerate(model)]
    optimizer = torch.optim.SGD(parts)
    trainer = Trainer(
        model,
        optimizer,
        [DATA] * 4,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=None if schedule is None else schedule(optimizer),
        config=TrainerConfig(output_dir=place, **{"epochs": 2, **config}),
        callbacks=[rates or Rates()],
        discover=False,
    )
    trainer.train(resume)
    return trainer


SCHEDULES = {
    "StepLR": lambda o, f: schedules.StepLR(o, 3),
    "MultiStepLR": lambda o, f: schedules.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o, f: schedules.ConstantLR(o, total_iters=6),
    "LinearLR": lambda o, f: schedules.LinearLR(o, total_iters=6),
    "ExponentialLR": lambda o, f: schedules.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o, f: schedules.PolynomialLR(o, 16),
    "LambdaLR": lambda o, f: schedules.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o, f: schedules.MultiplicativeLR(o, lambda step: 0.9),
    "CosineAnnealingLR": lambda o, f: schedules.CosineAnnealingLR(o, 16, eta_min=0.01 * f),
    "CosineAnnealingWarmRestarts": lambda o, f: schedules.CosineAnnealingWarmRestarts(
        o, 3, eta_min=0.01 * f
    ),
    "OneCycleLR": lambda o, f: schedules.OneCycleLR(
        o, [0.1 * f, 0.05 * f], total_steps=16, cycle_momentum=False
    ),
    "CyclicLR": lambda o, f: schedules.CyclicLR(o, 0.1 * f, 0.2 * f, 3, cycle_momentum=False),
    "SequentialLR": lambda o, f: schedules.SequentialLR(
        o, [schedules.LinearLR(o), schedules.CosineAnnealingLR(o, 13, eta_min=0.01 * f)], [3]
    ),
    "ChainedScheduler": lambda o, f: schedules.ChainedScheduler(
        [schedules.LinearLR(o), schedules.ExponentialLR(o, 0.9)], optimizer=o
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_whole_schedule_goes_on_as_if_it_had_been_built_on_the_rate(tmp_path, name):
    whole, resumed = Rates(), Rates()
    options = {"epochs": 4, "groups": 2}
    train(None, lambda o: SCHEDULES[name](o, 0.5), rate=0.05, rates=whole, **options)
    train(tmp_path, lambda o: SCHEDULES[name](o, 1), **{**options, "max_steps": 5})
    train(
        tmp_path,
        lambda o: SCHEDULES[name](o, 1),
        resume=True,
        rates=resumed,
        resume_learning_rate=0.05,
        **options,
    )
    assert len(resumed.seen) == 11
    for own, wanted in zip(resumed.seen, whole.seen[5:], strict=True):
        assert own == pytest.approx(wanted, rel=1e-9)


def test_without_a_schedule_the_rate_holds_and_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tmp_path, epochs=1)
    rates = Rates()
    train(tmp_path, resume=True, rates=rates, resume_learning_rate=0.3)
    assert rates.seen == [[0.3]] * 4
    assert "the learning rate is 0.3 from here on, and was 0.1." in caplog.text


def test_a_job_that_starts_again_does_not_undo_what_a_plateau_has_done(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def plateau(optimizer):
        return schedules.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
        )

    options = {"scheduler_monitor": "train_loss", "resume_learning_rate": 0.8}
    train(tmp_path, plateau, epochs=1, scheduler_monitor="train_loss")
    for epochs in (2, 3):
        trainer = train(tmp_path, plateau, resume=True, epochs=epochs, **options)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.2
    assert "became 0.8 at an earlier resume, and goes on from there" in caplog.text


def test_a_rate_without_effect_is_told_with_the_option_that_has_one(tmp_path, caplog):
    train(tmp_path, epochs=1)
    train(tmp_path, resume=True, rate=0.3)
    (text,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert text.endswith("0.3 has no effect. To change it, use resume_learning_rate=0.3.")
    caplog.clear()
    train(tmp_path, resume=True, rate=0.3, epochs=3, resume_learning_rate=0.3)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_run_that_does_not_resume_is_refused(tmp_path, caplog):
    with pytest.raises(ConfigError, match=r"resume_learning_rate is 0\.3, and this run does not"):
        train(tmp_path, resume_learning_rate=0.3)
    caplog.set_level(logging.INFO)
    train(tmp_path, resume="auto", resume_learning_rate=0.3)
    assert "resume_learning_rate has no effect: there is nothing to resume" in caplog.text


def test_a_schedule_that_says_nothing_of_its_base_is_refused(tmp_path):
    class Own:
        def step(self):
            pass

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    train(tmp_path, lambda _: Own(), epochs=1)
    with pytest.raises(ConfigError, match="Own has no base_lrs"):
        train(tmp_path, lambda _: Own(), resume=True, resume_learning_rate=0.3)
