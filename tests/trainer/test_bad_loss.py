"""What is no loss, and a run that has no memory left, in a sentence."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.engine.memory import OutOfMemoryError
from trainer_callback import RunError, TrainerCallback, UsageError


def make(loss_fn, batch=None, **config):
    model = nn.Linear(4, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4) if batch is None else batch] * 3,
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": 1, **config}),
        discover=False,
    )


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda loss: {"lost": loss}, "the loss of a batch is a 0-dim tensor, and not a dict"),
        (lambda loss: (loss, 1, 2), r"and not a tuple.*\(loss, outputs\)"),
        (lambda loss: loss.item(), "and not a float"),
        (lambda loss: None, "and not a NoneType"),
        (lambda loss: loss.reshape(1), r"and not one of shape \(1,\)"),
        (lambda loss: loss.expand(2, 3), r"and not one of shape \(2, 3\)"),
        (lambda loss: loss.detach(), "depends on no parameter"),
        (lambda loss: loss * 1j, "complex64"),
    ],
)
def test_an_answer_that_is_no_loss_is_refused_before_the_first_step(answer, text, steps):
    trainer = make(
        lambda model, batch: answer(model(batch).mean()), gradient_accumulation_steps=steps
    )
    with pytest.raises(UsageError, match=text):
        trainer.train()
    assert trainer.step == 0


class Criterion(nn.Module):
    def forward(self, output, target, weight):
        return output


@pytest.mark.parametrize(
    ("loss_fn", "name"),
    [
        (nn.MSELoss(), "MSELoss"),
        (functional.mse_loss, "mse_loss"),
        (functional.cross_entropy, "cross_entropy"),
        (Criterion(), "Criterion"),
        (lambda output: output, "<lambda>"),
    ],
)
def test_a_loss_that_does_not_take_model_and_batch_is_refused(loss_fn, name):
    with pytest.raises(ConfigError, match=rf"\(model, batch\), and {name} does not take that"):
        make(loss_fn)
    with pytest.raises(ConfigError, match=r"loss_fn must be a function .*got a str"):
        make("mse")


def test_a_module_that_takes_model_and_batch_is_a_loss():
    class Mean(nn.Module):
        def forward(self, model, batch):
            return model(batch).mean()

    assert make(Mean()).train().steps == 3


def test_batches_that_the_model_does_not_take_without_a_loss_are_explained():
    pair = (torch.ones(2, 4), torch.ones(2, 1))
    for batch, what in ((pair, "2 items"), ({"x": pair[0], "y": pair[1]}, "keys x, y")):
        with pytest.raises(UsageError, match=rf"Linear does not take a batch of {what}.*loss_fn="):
            make(None, batch).train()


def test_a_type_error_inside_the_model_stays_itself():
    class Broken(nn.Linear):
        def forward(self, x):
            return len(3)

    model = Broken(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        Trainer(model, optimizer, [torch.ones(2, 4)], discover=False).train()


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1 GiB is free.\nSee documentation for Memory Management"
)
HOST = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (
            torch.OutOfMemoryError(CUDA),
            "the device is out of memory in epoch 0, update 3 when 20.",
        ),
        (RuntimeError(HOST), "the host is out of memory in epoch 0, update 3."),
        (MemoryError(), "the host is out of memory in epoch 0, update 3."),
    ],
)
def test_running_out_of_memory_is_one_line_that_names_arguments(error, start):
    count, told = iter(range(9)), []

    class Listen(TrainerCallback):
        def on_exception(self, exception):
            told.append(exception)

    def loss_fn(model, batch):
        if next(count) == 2:
            raise error
        return model(batch).mean()

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [torch.ones(2, 4)] * 3
    trainer = Trainer(
        model, optimizer, batches, loss_fn=loss_fn, callbacks=[Listen()], discover=False
    )
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.train()
    assert isinstance(caught.value, RunError)
    assert isinstance(caught.value, torch.OutOfMemoryError)
    assert str(caught.value).startswith(start)
    assert "smaller batch_size and as much more of gradient_accumulation_steps" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error
    assert told == [caught.value]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_of_another_model_is_refused_at_the_first_update(precision):
    old = torch.nn.Linear(4, 1)
    trainer = make(lambda model, batch: old(batch).float().mean(), precision=precision)
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(ConfigError, match=r"no parameter of the optimizer a gradient .*handed"):
        trainer.train()
    assert trainer.step == 0
    assert all(map(torch.equal, before, trainer.model.parameters()))
    partly = make(lambda model, batch: (batch.mean(0) * model.weight).sum(), precision=precision)
    partly.train()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda loss: None, "and not a NoneType"),
        (lambda loss: loss.item(), "and not a float"),
        (lambda loss: loss.expand(3), r"and not one of shape \(3,\)"),
        (lambda loss: loss * 1j, "complex64"),
    ],
)
def test_an_answer_in_a_validation_that_is_no_loss_is_refused_in_the_same_words(answer, text):
    def loss_fn(model, batch):
        loss = model(batch).mean()
        return loss if torch.is_grad_enabled() else answer(loss)

    model = nn.Linear(4, 1)
    batches = [torch.ones(2, 4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches, batches, loss_fn=loss_fn, discover=False)
    with pytest.raises(UsageError, match=text):
        trainer.train()


def test_a_model_on_the_meta_device_is_refused_with_the_way_out():
    with torch.device("meta"):
        model = nn.BatchNorm1d(4)
    model.weight, model.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name in ("running_mean", "weight"):
        with pytest.raises(ConfigError, match=rf"{name} is on the meta device.*to_empty"):
            Trainer(model, optimizer, [torch.ones(2, 4)], discover=False)
        model.weight = nn.Parameter(model.weight.to("meta"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
