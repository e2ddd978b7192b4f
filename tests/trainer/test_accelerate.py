"""What a run takes from Accelerate, and says of what it cannot take."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import ConfigError, Run, TrainerConfig

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def script():
    """What such a script begins with, two batches an update."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"gradient_accumulation_steps": 3}, "is 3, and Accelerator's is 2"),
        ({"precision": "bf16"}, r"Give it to Accelerator\(mixed_precision"),
    ],
)
def test_what_accelerator_decides_is_not_told_twice(script, config, text):
    accelerator, model, optimizer, _ = script
    with pytest.raises(ConfigError, match=text):
        Run(model, optimizer, accelerator=accelerator, config=TrainerConfig(**config))


@pytest.mark.parametrize(
    ("asked", "used", "says"), [("bf16", "bf16", False), ("fp16", "fp32", True)]
)
def test_callbacks_are_told_the_precision_that_accelerate_really_uses(asked, used, says, caplog):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=asked)
    model = nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    run = Run(model, optimizer, accelerator=accelerator, discover=False)
    assert run.view.precision == used
    assert ("mixed_precision='fp16') has no effect on a cpu" in caplog.text) is says


def test_batches_outside_accumulate_are_told_what_is_missing(script):
    accelerator, model, optimizer, loader = script
    accelerator.gradient_state._set_sync_gradients(False)
    run = Run(model, optimizer, accelerator=accelerator, discover=False)

    def train_without_it():
        with run.start():
            for _ in run.epochs():
                for (inputs,) in run.batches(loader):
                    run.backward(run.module(inputs).square().mean())
                    run.step()

    with pytest.raises(ConfigError, match=r"with accelerator\.accumulate\(model\)"):
        train_without_it()


@pytest.mark.card
def test_fp16_of_accelerate_unscales_once():
    def prepare():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(mixed_precision="fp16")
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return accelerator, *accelerator.prepare(model, optimizer)

    batches = [torch.full((2, 4), 0.1 * index).cuda() for index in range(4)]
    accelerator, plain, optimizer = prepare()
    for batch in batches:
        accelerator.backward(plain(batch).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    accelerator, model, optimizer = prepare()
    run = Run(model, optimizer, accelerator=accelerator, config=TrainerConfig(epochs=1))
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(batches):
                run.backward(run.module(batch).square().mean())
                run.step()
    assert torch.equal(plain.weight, model.weight)
