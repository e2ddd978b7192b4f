"""What a model or an optimizer gets while a run goes on: told, since no resume fits it."""

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import ResumeError, TrainerCallback


class AddBuffer(TrainerCallback):
    def on_train_start(self, trainer):
        trainer.model.register_buffer("mean", torch.zeros(3))


class AddWeight(TrainerCallback):
    def on_step_end(self, trainer):
        if trainer.step == 3:
            trainer.model.more = nn.Parameter(torch.zeros(3))


class Grow(TrainerCallback):
    def on_step_end(self, trainer):
        trainer.model.cache = torch.zeros(trainer.step)


class AddGroup(TrainerCallback):
    def on_epoch_start(self, trainer, epoch):
        if epoch == 1:
            trainer.optimizer.add_param_group({"params": [trainer.model[1].weight]})


def train(place, *callbacks, resume=False, epochs=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    model.register_buffer("cache", torch.zeros(0))
    trainer = Trainer(
        model,
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        [torch.ones(2, 4)] * 3,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(epochs=epochs, output_dir=place, snapshot_interval=1),
        callbacks=list(callbacks),
        discover=False,
    )
    return trainer.train(resume)


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (AddBuffer, "'mean' was not there then, and is of shape (3,) (float32)."),
        (AddWeight, "'more' was not there then, and is of shape (3,) (float32)."),
        (Grow, "'cache' was of shape (0,) (float32) then, and is of shape (1,) (float32)."),
        (AddGroup, "group 1 of the optimizer was not there then, and is of 1 parameters."),
    ],
)
def test_what_is_new_in_a_run_is_told_once_at_the_first_snapshot_that_has_it(
    tmp_path, caplog, callback, text
):
    assert train(tmp_path, callback()).status == "finished"
    told = [line for line in caplog.messages if line.startswith("snapshots from here on fit no")]
    assert len(told) == 1
    assert text in told[0]
    with pytest.raises(ResumeError):
        train(tmp_path, callback(), resume=True, epochs=3)


def test_nothing_is_told_of_a_run_that_gets_nothing_new(tmp_path, caplog):
    train(tmp_path)
    train(tmp_path, resume=True, epochs=3)
    assert "fit no model" not in caplog.text
