"""Processes of one run that were given different things are refused before the first step."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset

from trainer import ConfigError, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

DATA = torch.arange(128.0).reshape(32, 4).sin()


def make(
    *callbacks,
    model=None,
    optimizer=torch.optim.SGD,
    lr=0.01,
    frozen=False,
    step_size=None,
    loader=None,
    val_loader=None,
    **config,
):
    torch.manual_seed(7)
    model = model or nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].requires_grad_(not frozen)
    optimizer = optimizer(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.StepLR
    return Trainer(
        model,
        optimizer,
        loader or DataLoader(DATA, batch_size=4),
        val_loader,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=None if step_size is None else schedule(optimizer, step_size),
        config=TrainerConfig(**{"epochs": 1, **config}),
        callbacks=callbacks,
        discover=False,
    )


OPTIONS = {
    "epochs": (1, 2),
    "max_steps": (None, 3),
    "min_epochs": (0, 1),
    "seed": (0, 1),
    "gradient_accumulation_steps": (1, 2),
    "max_grad_norm": (1.0, 0.5),
    "precision": ("fp32", "bf16"),
    "eval_interval": (None, 2),
    "log_interval": (10, 1),
    "on_nonfinite": ("stop", "skip"),
    "check_gradients": (True, False),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_differs_between_processes_is_refused_with_both_values(tiny, name):
    one, other = OPTIONS[name]
    text = f"{name} is {one!r} in process 0 and {other!r} in process 1. "

    def work(rank):
        with pytest.raises(ConfigError, match=re.escape(text)):
            make(**{name: OPTIONS[name][rank]})

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


PARTS = {
    "lr of the optimizer's group 0 is 0.01 in process 0 and 0.02 in process 1": (
        lambda rank: {"lr": 0.02 if rank else torch.tensor(0.01, dtype=torch.float64)}
    ),
    "the optimizer is SGD in process 0 and Adam": (
        lambda rank: {"optimizer": [torch.optim.SGD, torch.optim.Adam][rank]}
    ),
    "step_size of StepLR is 2 in process 0 and 3": lambda rank: {"step_size": rank + 2},
    "the scheduler is NoneType in process 0 and StepLR": (
        lambda rank: {"step_size": [None, 2][rank]}
    ),
    "model.0.weight is of shape (4, 4) (float32), in group 0 in process 0 and of shape (5, 4)": (
        lambda rank: {"model": nn.Sequential(nn.Linear(4, 4 + rank))}
    ),
    "model.1.running_mean is not there in process 0": (
        lambda rank: (
            {"model": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))}
            if rank
            else {"model": nn.Sequential(nn.Linear(4, 4))}
        )
    ),
    "(float32), in group 0 in process 0 and of shape (4, 4) (float32), not trained": (
        lambda rank: {"frozen": bool(rank)}
    ),
    "batch_size of the train loader is 4 in process 0 and 2": (
        lambda rank: {"loader": DataLoader(DATA, batch_size=4 - 2 * rank)}
    ),
    "sampler of the train loader is 'RandomSampler' in process 0 and 'Sequential": (
        lambda rank: {"loader": DataLoader(DATA, batch_size=4, shuffle=not rank)}
    ),
    "the Subset's indices of the train loader is ": (  # each has divided the data by hand
        lambda rank: {"loader": DataLoader(Subset(DATA, range(rank, 32, 2)), batch_size=4)}
    ),
    "the validation loader is NoneType in process 0 and list": (
        lambda rank: {"val_loader": [DATA[:4]] if rank else None}
    ),
}


@pytest.mark.parametrize("text", PARTS)
def test_a_part_of_a_run_that_differs_between_processes_is_refused(tiny, text):
    def work(rank):
        with pytest.raises(ConfigError, match=re.escape(text)):
            make(**PARTS[text](rank))

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


class Waits(TrainerCallback):
    def __init__(self, patience=3, name="a"):
        self.patience = patience
        self.name = name


class Keeps(TrainerCallback):
    def on_snapshot_save(self, trainer):
        return {"count": 1}


def test_callbacks_of_one_key_that_are_of_two_classes_are_refused(tiny):
    def work(rank):
        other = type("Other", (TrainerCallback,), {"state_key": "Waits"})
        with pytest.raises(ConfigError, match=r"the callback Waits is Waits of .* and Other of"):
            make(other() if rank else Waits())

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_callbacks_in_another_order_are_refused(tiny):
    def work(rank):
        with pytest.raises(ConfigError, match="the order Waits, Keeps in process 0 and Keeps, Wai"):
            make(*[Waits(), Keeps()][:: -1 if rank else 1])

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_an_option_of_a_callback_that_differs_is_told_by_the_main_process(tiny, caplog):
    def work(rank):
        assert make(Waits(patience=3 + rank)).train().exit_code == 0
        text = "Waits.patience is 3 in process 0 and 4 in process 1: each process goes by its own."
        assert (text in caplog.text) == (rank == 0)

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_a_state_that_no_snapshot_keeps_as_the_main_process_lacks_its_callback_is_told(
    tiny, caplog
):
    def work(rank):
        assert make(*[Keeps()] * rank).train().exit_code == 0
        text = "Keeps is not in the main process, so no snapshot keeps its state"
        assert (text in caplog.text) == (rank == 0)

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_what_each_process_may_have_of_its_own_is_taken_without_a_word(tiny, tmp_path, caplog):
    def work(rank):
        config = {
            "output_dir": tmp_path / str(rank),
            "overwrite": bool(rank),
            "keep_snapshots": 1 + rank,
            "snapshot_sync": bool(rank),
            "max_time": 100.0 + rank,
            "device": ["auto", "cpu"][rank],
        }
        sampler = DistributedSampler(DATA, 2, rank)
        loader = DataLoader(DATA, batch_size=4, sampler=sampler, num_workers=0)
        callbacks = [] if rank else [Keeps()]  # as one that shows something in the main process
        assert make(*callbacks, loader=loader, **config).train().exit_code == 0
        assert "process" not in caplog.text

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_of_three_processes_the_first_that_differs_is_named(tiny):
    def work(rank):
        with pytest.raises(ConfigError, match="seed is 0 in process 0 and 5 in process 2"):
            make(seed=5 * (rank == 2))

    assert tiny.run_ranks(work, seconds=20, count=3) == [0, 0, 0]
