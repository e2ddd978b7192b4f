"""The functions of a schedule, which no snapshot keeps: compared at a resume as far as can be."""

import logging

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from trainer import Trainer, TrainerConfig

SAID = "no snapshot keeps its functions"


def train(place, schedule, *, resume=False, epochs=1):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(
        model,
        optimizer,
        [torch.ones(2, 4)] * 4,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=schedule(optimizer),
        config=TrainerConfig(epochs=epochs, output_dir=place),
        discover=False,
    ).train(resume)


def told(caplog):
    return [(r.levelname, r.getMessage()) for r in caplog.records if SAID in r.getMessage()]


def halve(step):
    return 0.5**step


class Warmup:
    def __init__(self, steps):
        self.steps, self.calls = steps, 0

    def __call__(self, step):
        self.calls += 1
        return min(1.0, (step + 1) / self.steps)


def in_sequence(function):
    return lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, total_iters=2), schedules.LambdaLR(o, function)], [2]
    )


def test_another_function_is_told_with_the_rates_of_both(tmp_path, caplog):
    train(tmp_path, lambda o: schedules.LambdaLR(o, halve))
    train(tmp_path, lambda o: schedules.LambdaLR(o, lambda step: 1.0), resume=True, epochs=2)
    text = (
        f"LambdaLR: {SAID}, and this run's are others. The rates were [0.00625] in the snapshot "
        "and would be [0.1] by those of this run, which hold behind the next update."
    )
    assert told(caplog) == [("WARNING", text)]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: schedules.LambdaLR(o, halve),
        lambda o: schedules.MultiplicativeLR(o, lambda step: 0.9),
        in_sequence(halve),
        lambda o: schedules.ChainedScheduler(
            [schedules.ConstantLR(o), schedules.LambdaLR(o, halve)], optimizer=o
        ),
        lambda o: schedules.LambdaLR(o, Warmup(3)),
    ],
)
def test_what_cannot_be_compared_is_said_once_and_the_same_function_is_no_warning(
    tmp_path, caplog, schedule
):
    caplog.set_level(logging.INFO)
    train(tmp_path, schedule)
    assert told(caplog) == []
    train(tmp_path, schedule, resume=True, epochs=2)
    assert [level for level, _ in told(caplog)] == ["INFO"]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_another_function_is_told_also_inside_of_another_schedule(tmp_path, caplog):
    train(tmp_path, in_sequence(halve))
    train(tmp_path, in_sequence(lambda step: 0.9**step), resume=True, epochs=2)
    assert [level for level, _ in told(caplog)] == ["WARNING"]


def test_what_an_object_was_made_from_and_the_snapshot_replaces_is_told(tmp_path, caplog):
    train(tmp_path, lambda o: schedules.LambdaLR(o, Warmup(3)))
    train(tmp_path, lambda o: schedules.LambdaLR(o, Warmup(30)), resume=True, epochs=2)
    assert "LambdaLR: lr_lambda[0].steps 3 of the snapshot holds; 30 has no effect." in caplog.text
