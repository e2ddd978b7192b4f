"""Small runs of the real Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model() -> nn.Module:
    """Returns a model with a buffer that changes, and with random numbers in its forward pass."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)
    )


def mean_square(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a Trainer of 2 epochs of 8 shuffled batches of 4, in `tmp_path / "run"`."""

    def make_trainer(
        *callbacks: object,
        optimizer: Callable[[nn.Module], Any] = lambda model: torch.optim.AdamW(
            model.parameters(), lr=1e-3
        ),
        scheduler: Callable[[Any], Any] | None = None,
        loss_fn: Callable[[nn.Module, Any], Any] = mean_square,
        **config: Any,
    ) -> Trainer:
        torch.manual_seed(0)
        x = torch.randn(32, 4)
        data = TensorDataset(x, x.sum(1, keepdim=True))
        model = make_model()
        made = optimizer(model)
        return Trainer(
            model,
            made,
            DataLoader(data, batch_size=4, shuffle=True),
            DataLoader(data, batch_size=8),
            loss_fn=loss_fn,
            scheduler=None if scheduler is None else scheduler(made),
            config=TrainerConfig(
                **{"epochs": 2, "device": "cpu", "output_dir": tmp_path / "run", **config}
            ),
            callbacks=callbacks,
            discover=False,
        )

    return make_trainer
