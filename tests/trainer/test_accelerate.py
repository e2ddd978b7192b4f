"""A script of Accelerate, driven by a run: killed and resumed, and as it is without a run."""

import random
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import ConfigError, Run, TrainerConfig

accelerate = pytest.importorskip("accelerate")


def prepare(precision="no", steps=2):
    """What such a script begins with."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    torch.manual_seed(1)
    random.seed(1)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=steps, mixed_precision=precision
    )
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    data = TensorDataset(torch.arange(88).float().reshape(22, 4) / 50)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    return accelerator, *accelerator.prepare(model, optimizer, loader, scheduler)


def train(directory, callbacks=(), mixed="no", resume="auto", **config):
    accelerator, model, optimizer, loader, scheduler = prepare(mixed)
    settings = {"epochs": 3, "log_interval": 1, "max_grad_norm": 1.0, **config}
    if directory is not None:
        settings |= {"output_dir": directory, "snapshot_interval": 1}
    run = Run(
        model,
        optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        config=TrainerConfig(**settings),
        callbacks=callbacks,
        discover=False,
    )
    with run.start(resume):
        for _ in run.epochs():
            for (inputs,) in run.batches(loader):
                with accelerator.accumulate(model):
                    run.backward(run.module(inputs).square().mean())
                    run.step()
    return run


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_of_accelerate_ends_as_if_it_had_not_been(tiny, tmp_path, precision):
    def work(place, at=None):
        train(tmp_path / place, [tiny.killer(at)], precision)

    assert tiny.child(lambda: work("whole")).wait() == 0
    for at in (4, 11, 23):
        assert tiny.child(lambda at=at: work(f"killed {at}", at)).wait() == -signal.SIGKILL
        assert tiny.child(lambda at=at: work(f"killed {at}")).wait() == 0
        states = [tiny.newest_state(tmp_path / name) for name in ("whole", f"killed {at}")]
        assert tiny.difference(*states) is None


def test_a_run_takes_the_steps_of_the_script_without_it():
    """The batches are those of the run, for the order is its own."""
    run = train(None, resume=False, epochs=1)
    accelerator, model, optimizer, loader, scheduler = prepare()
    batches = [batch for batch, _ in Run(model, optimizer).use_loader(loader).iterate(0)]
    torch.manual_seed(0)  # as a run does, before the first dropout
    for index, (inputs,) in enumerate(batches):
        accelerator.gradient_state._set_sync_gradients(index % 2 == 1)
        accelerator.backward(model(inputs).square().mean())
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    for one, other in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"gradient_accumulation_steps": 3},
            "is 3, and Accelerator's is 2. Give it to Accelerator",
        ),
        ({"precision": "bf16"}, r"Give it to Accelerator\(mixed_precision"),
    ],
)
def test_what_accelerator_decides_is_not_told_twice(config, text):
    with pytest.raises(ConfigError, match=text):
        train(None, **config)


def test_batches_outside_accumulate_are_told_what_is_missing():
    accelerator, model, optimizer, loader, _ = prepare()
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
