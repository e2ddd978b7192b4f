"""Small runs of the real Trainer, in trials of real studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_trainer(*callbacks: object, rate: float = 0.1, **config: Any) -> Trainer:
    """Returns a Trainer of 3 epochs of 4 batches, with a validation set."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    batches = list(torch.randn(4, 3, 4))
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=rate),
        batches,
        batches[:2],
        loss_fn=lambda model, batch: (model(batch) - 1).square().mean(),
        config=TrainerConfig(**{"epochs": 3, "device": "cpu", **config}),
        callbacks=callbacks,
        discover=False,
    )


class Never(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return False


class AtStep(optuna.pruners.BasePruner):
    """Prunes at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study, trial):
        return trial.last_step >= self.step


@pytest.fixture
def make() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(pruner=Never())


@pytest.fixture
def pruning_study() -> Callable[[int], optuna.Study]:
    """Makes a study whose trials are pruned at a step."""
    return lambda step: optuna.create_study(pruner=AtStep(step))
