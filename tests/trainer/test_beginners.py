"""Classic mistakes of somebody who writes a first script: each gives one sentence that says what to
do, before or at the first batch.
"""

import logging
import re

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback

X, Y = torch.ones(8, 4), torch.arange(8) % 3


def load(inputs=X, targets=Y, **options):
    return DataLoader(TensorDataset(inputs, targets), **{"batch_size": 4, **options})


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def with_outputs(model, batch):
    outputs = model(batch[0])
    return functional.cross_entropy(outputs, batch[1]), outputs


def train(model=None, optimizer=None, loader=None, val_loader=None, **options):
    model = nn.Linear(4, 3) if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"loss_fn": cross_entropy, "config": TrainerConfig(epochs=2), **options}
    loader = load() if loader is None else loader
    Trainer(model, optimizer, loader, val_loader, discover=False, **options).train()


def swap_arguments():
    model = nn.Linear(4, 3)
    Trainer(model, load(), torch.optim.SGD(model.parameters(), lr=0.1))


def use_the_optimizer_of_another_model():
    train(optimizer=torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1))


def compute_with_another_model():
    other = nn.Linear(4, 3)
    train(loss_fn=lambda model, batch: cross_entropy(other, batch))


def freeze_everything():
    train(nn.Linear(4, 3).requires_grad_(False))


def run_the_backward_pass_in_the_loss():
    def loss_fn(model, batch):
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    train(loss_fn=loss_fn)


def step_in_the_loss():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        cross_entropy(model, batch).backward()
        optimizer.step()
        return cross_entropy(model, batch)

    train(model, optimizer, loss_fn=loss_fn)


def schedule_another_optimizer():
    other = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    train(scheduler=torch.optim.lr_scheduler.StepLR(other, 1))


class Misspelt:
    def on_epoch_ended(self):
        pass


class Normal(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, inputs):
        return self.layers(inputs)


def mean_accuracy(outputs, batch):
    return (outputs.argmax(1) == batch[1]).float().mean()


MISTAKES = {
    "a loss module as loss_fn": (
        lambda: train(loss_fn=nn.CrossEntropyLoss()),
        r"loss_fn is called with \(model, batch\), and CrossEntropyLoss does not take that. Write",
    ),
    "a loss of outputs and targets": (
        lambda: train(loss_fn=lambda outputs, targets: functional.cross_entropy(outputs, targets)),
        r"is called with \(model, batch\), and its parameters are \(outputs, targets\). Write",
    ),
    "batch and model swapped": (
        lambda: train(loss_fn=lambda batch, model: cross_entropy(model, batch)),
        r"is called with \(model, batch\), and its parameters are \(batch, model\). Write",
    ),
    "no return": (
        lambda: train(loss_fn=lambda model, batch: None),
        "is a 0-dim tensor, and not a NoneType. Return from loss_fn a loss",
    ),
    "item()": (
        lambda: train(loss_fn=lambda model, batch: cross_entropy(model, batch).item()),
        "is a 0-dim tensor, and not a float. Return from loss_fn a loss",
    ),
    "detach()": (
        lambda: train(loss_fn=lambda model, batch: cross_entropy(model, batch).detach()),
        r"depends on no parameter that requires a gradient. Compute it without detach",
    ),
    "no reduction": (
        lambda: train(
            loss_fn=lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="none")
        ),
        r"not one of shape \(4,\). Take its .mean\(\)",
    ),
    "no loss_fn": (
        lambda: train(loss_fn=None),
        "Linear does not take a batch of 2 items .* Pass loss_fn=lambda model, batch:",
    ),
    "backward() in the loss": (
        run_the_backward_pass_in_the_loss,
        r"Leave loss.backward\(\) to the run",
    ),
    "optimizer.step() in the loss": (step_in_the_loss, r"Leave optimizer.step\(\) to the run"),
    "arguments swapped": (
        swap_arguments,
        r"optimizer must be an Optimizer, got a DataLoader. Write Trainer\(model",
    ),
    "a class for a model": (
        lambda: train(nn.Linear, torch.optim.SGD([torch.ones(1)], lr=0.1)),
        "model must be a Module, got the class Linear",
    ),
    "another model's optimizer": (
        use_the_optimizer_of_another_model,
        r"none of the parameters of SGD belongs to the model.* Build it from model.parameters\(\)",
    ),
    "another model in the loss": (
        compute_with_another_model,
        "training would change nothing. Compute the loss from .* the model that loss_fn is handed",
    ),
    "everything frozen": (
        freeze_everything,
        r"every parameter of SGD is frozen .* Call requires_grad_\(\) on what is to be trained",
    ),
    "settings as arguments": (
        lambda: train(epochs=3),
        r"epochs is a setting. Write config=TrainerConfig\(epochs=3, ...\)",
    ),
    "a dict for a config": (
        lambda: train(config={"epochs": 3}),
        r"config must be a TrainerConfig, got a dict. Write .* config=TrainerConfig\(...\)",
    ),
    "an unknown setting": (
        lambda: TrainerConfig(lr=0.1),
        "TrainerConfig has no 'lr'. It has check_gradients, checkpoint_activations, compile",
    ),
    "a data set for a loader": (
        lambda: train(loader=TensorDataset(X, Y)),
        r"is the data set TensorDataset.* Wrap it in a DataLoader: DataLoader\(dataset, batch_size",
    ),
    "a tensor for a loader": (
        lambda: train(loader=X),
        r"whose rows would be taken for batches. Wrap it: DataLoader\(TensorDataset\(tensor\)",
    ),
    "an iterator for a loader": (
        lambda: train(loader=iter(load())),
        r"is an iterator .* and the run has 2 epochs.* Pass what can be started",
    ),
    "an iterator for a validation": (
        lambda: train(val_loader=iter(load())),
        "is an iterator .* and the run has several validations.* Pass what can be started again",
    ),
    "an empty loader": (
        lambda: train(loader=[]),
        "the train loader is empty. Give it more data",
    ),
    "class numbers that are floats": (
        lambda: train(loader=load(X, Y.float())),
        r"a list of float32 \(4, 4\), float32 \(4,\). Class numbers are integers: convert",
    ),
    "too few outputs": (
        lambda: train(nn.Linear(4, 2)),
        "Class numbers go from 0 to C - 1, where C is the number of outputs",
    ),
    "inputs of another width": (
        lambda: train(nn.Linear(5, 3)),
        r"The batch is a list of float32 \(4, 4\), int64 \(4,\). The last dimension of the inputs",
    ),
    "float64 from numpy": (
        lambda: train(loader=load(torch.from_numpy(numpy.ones((8, 4))))),
        r"Numbers from numpy and pandas are float64.* convert inputs with .float\(\)",
    ),
    "arrays for tensors": (
        lambda: train(loader=[(X.numpy(), Y)]),
        r"a numpy array float32 \(8, 4\), int64 \(8,\). Make tensors of arrays: torch.from_numpy",
    ),
    "a batch that is a dict": (
        lambda: train(loader=[{"inputs": X, "labels": Y}]),
        r"The batch is a dict of 'inputs': float32 \(8, 4\), 'labels': int64 \(8,\)",
    ),
    "batch normalisation of one item": (
        lambda: train(Normal(), loader=load(X[:5], Y[:5], batch_size=1)),
        r"Batch normalisation needs two items: use DataLoader\(..., drop_last=True\)",
    ),
    "NaN in the data": (
        lambda: train(loader=load(X * float("nan"))),
        "is not finite .* It is the first one: look for NaN in the data",
    ),
    "a class for a scheduler": (
        lambda: train(scheduler=torch.optim.lr_scheduler.StepLR),
        "must be a learning-rate scheduler, got the class StepLR. Write scheduler=",
    ),
    "another optimizer's scheduler": (
        schedule_another_optimizer,
        "belongs to another optimizer .* Build it from the optimizer that the run is given",
    ),
    "a class for a callback": (
        lambda: train(callbacks=[EarlyStoppingCallback]),
        r"is the class EarlyStoppingCallback, not an instance. Write EarlyStoppingCallback\(\)",
    ),
    "a callback that is no list": (
        lambda: train(callbacks=TrainerCallback()),
        r"callbacks must be a list of callbacks, .* Write callbacks=\[callback\]",
    ),
    "a misspelt hook": (
        lambda: train(callbacks=[Misspelt()]),
        "Misspelt has no hooks. Subclass TrainerCallback",
    ),
    "early stopping without a validation": (
        lambda: train(callbacks=[EarlyStoppingCallback()]),
        "no val_loss without a validation set. To stop early, use monitor='train_loss'",
    ),
    "a metric that is a mean": (
        lambda: train(val_loader=load(), loss_fn=with_outputs, metrics={"accuracy": mean_accuracy}),
        r"one value per item, shape \(4,\). Return outputs.argmax\(1\) == batch\[1\], without",
    ),
    "snapshots without a place": (
        lambda: TrainerConfig(snapshot_interval=100),
        "snapshots need a place: give output_dir='runs/a'",
    ),
    "a device that is not there": (
        lambda: train(config=TrainerConfig(device="gpu")),
        "there is no device 'gpu'. This machine has cpu",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_a_sentence_that_says_what_to_do(name, caplog):
    mistake, sentence = MISTAKES[name]
    with caplog.at_level(logging.INFO, logger="trainer"), pytest.raises(Exception) as caught:  # noqa: PT011
        mistake()
    told = [str(caught.value), *getattr(caught.value, "__notes__", ()), *caplog.messages]
    assert any(re.search(sentence, text) for text in told), told
