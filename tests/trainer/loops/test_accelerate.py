"""A script of Accelerate over `Run`: it prepares, the run brings hooks, snapshots and signals."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Run, TrainerConfig

accelerate = pytest.importorskip("accelerate")

DATA = TensorDataset(torch.randn(22, 3, generator=torch.Generator().manual_seed(0)))


def reset():
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def prepare(shuffle=True, dropout=0.2, **settings):
    reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    loader = DataLoader(DATA, batch_size=4, shuffle=shuffle)
    return accelerator, *accelerator.prepare(model, optimizer, loader, scheduler)


def train(place, callbacks=(), *, resume=False, settings=None, **config):
    accelerator, model, optimizer, loader, scheduler = prepare(**(settings or {}))
    run = Run(
        model,
        optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        callbacks=callbacks,
        config=TrainerConfig(
            **{
                "epochs": 3,
                "output_dir": place,
                "snapshot_interval": 1,
                "log_interval": 1,
                **config,
            }
        ),
        discover=False,
    )
    with run.start(resume):
        for _ in run.epochs():
            for (batch,) in run.batches(loader):
                with accelerator.accumulate(model):
                    run.backward(model(batch).square().mean())
                    run.step()
    return run


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("at", [9, 31, 52])
def test_kill_9_of_a_script_of_accelerate(tiny, tmp_path, steps, at):
    settings = {"gradient_accumulation_steps": steps}

    def work(place, *callbacks):
        train(tmp_path / place, callbacks, resume="auto", settings=settings)

    assert tiny.child(lambda: work("whole", tiny.killer())).wait() == 0
    assert tiny.child(lambda: work("killed", tiny.killer(at))).wait() == -9
    assert tiny.child(lambda: work("killed", tiny.killer())).wait() == 0
    states = [tiny.newest_state(tmp_path / place) for place in ("whole", "killed")]
    assert tiny.difference(*states) is None


@pytest.mark.parametrize("steps", [1, 2])  # a short last window is a mean over its batches here
def test_it_trains_what_accelerate_trains(steps):
    settings = {"gradient_accumulation_steps": steps, "shuffle": False, "dropout": 0.0}
    run = train(None, settings=settings, snapshot_interval=None, max_grad_norm=0.5)
    accelerator, model, optimizer, loader, scheduler = prepare(**settings)
    for _ in range(3):
        for (batch,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    for one, other in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:OMP_NUM_THREADS/MKL_NUM_THREADS unset:UserWarning")
def test_two_processes_of_accelerate_end_equal_and_resume(tiny, tmp_path):
    def work(rank, place, **config):
        run = train(tmp_path / place, resume="auto", **config)
        weights = nn.utils.parameters_to_vector(run.model.parameters()).tolist()
        (tmp_path / f"{place}-{rank}").write_text(f"{run.result.steps} {weights}")

    assert tiny.run_ranks(lambda rank: work(rank, "whole")) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, "cut", max_steps=4)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, "cut")) == [0, 0]
    ends = [
        (tmp_path / f"{place}-{rank}").read_text() for place in ("whole", "cut") for rank in (0, 1)
    ]
    assert len({*ends}) == 1
    assert ends[0].startswith("9 ")
