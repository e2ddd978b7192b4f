"""`trainer.hyperparameters` and `trainer.callbacks`: what a run is made of, for trackers."""

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer_callback import CallbackInfo, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback


class Asks(TrainerCallback):
    def __init__(self, depth=3, api_key="x", layers=(1, 2)):
        self.depth, self.api_key, self.layers = depth, api_key, layers

    def on_train_start(self, trainer):
        self.found, self.callbacks = trainer.hyperparameters, trainer.callbacks


def make(callbacks, model=None, optimizer=None, scheduler=None, **rest):
    model = model or nn.Linear(4, 1)
    return Trainer(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        [torch.ones(2, 4)] * 3,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=scheduler,
        callbacks=callbacks,
        discover=False,
        progress=False,
        **rest,
    )


def test_they_are_one_flat_mapping_of_plain_values():
    asks = Asks()
    config = TrainerConfig(epochs=2, max_grad_norm=1.5)
    make([asks], config=config, hyperparameters={"dropout": 0.1, "sizes": [1, 2]}).train()
    found = asks.found
    assert {type(value) for value in found.values()} <= {type(None), bool, int, float, str}
    expected = {
        "epochs": 2, "max_grad_norm": 1.5, "world_size": 1, "optimizer": "SGD",
        "optimizer.lr": 0.5, "optimizer.momentum": 0.9, "parameters": 5, "trained_parameters": 5,
        "Asks.depth": 3, "dropout": 0.1, "sizes": "[1, 2]",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert "scheduler" not in found
    assert not any("api_key" in name or "output_dir" in name for name in found)
    with pytest.raises(TypeError):
        found["epochs"] = 3


def test_groups_that_differ_and_the_schedule_are_there_and_stay_the_same(tmp_path):
    def start(resume, epochs):
        model = nn.Linear(4, 1)
        model.bias.requires_grad_(False)
        groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.5, weight_decay=0.1)
        asks = Asks()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.25)
        config = TrainerConfig(epochs=epochs, output_dir=tmp_path, snapshot_epochs=True)
        make([asks], model, optimizer, scheduler, config=config).train(resume)
        return {name: value for name, value in asks.found.items() if name != "epochs"}

    found = start(False, 1)
    expected = {
        "optimizer": "AdamW", "optimizer.lr": 0.5, "optimizer.betas": "[0.9, 0.999]",
        "optimizer.weight_decay": 0.1, "optimizer.group1.weight_decay": 0.0,
        "scheduler": "StepLR", "scheduler.step_size": 2, "scheduler.gamma": 0.25,
        "parameters": 5, "trained_parameters": 4,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert start(True, 2) == found


@pytest.mark.parametrize("given", [{"x": object()}, {3: 4}, [("a", 1)]])
def test_what_no_tracker_could_show_is_refused(given):
    with pytest.raises(ConfigError, match=r"^hyperparameters"):
        make([], hyperparameters=given)


def test_the_callbacks_are_there_with_their_options_and_cannot_be_changed(tmp_path):
    asks, stopping = Asks(), EarlyStoppingCallback(monitor="train_loss", patience=4)
    make([stopping, asks], config=TrainerConfig(epochs=1, output_dir=tmp_path)).train()
    assert [*asks.callbacks] == ["early_stopping", "Asks", "metrics_file"]
    found = asks.callbacks["early_stopping"]
    assert isinstance(found, CallbackInfo)
    assert found.callback is stopping
    assert found.distribution == "trainer-plugin-early-stopping"
    assert found.version
    assert (found.options["patience"], asks.callbacks["Asks"].options["depth"]) == (4, 3)
    with pytest.raises(TypeError):
        asks.callbacks["other"] = found
    with pytest.raises(TypeError):
        found.options["patience"] = 5
