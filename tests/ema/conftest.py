"""Small runs of the real Trainer, and the averages of their weights by a computation of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1).square().mean()


def make_trainer(
    *callbacks: object,
    model: nn.Module | None = None,
    loss_fn: Callable[[nn.Module, Tensor], Tensor] = mean_square,
    **config: Any,
) -> Trainer:
    """Returns a Trainer of 2 epochs of 5 batches, with a validation set."""
    torch.manual_seed(0)
    model = model if model is not None else nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(3, 4, generator=generator) for _ in range(5)]
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches,
        batches[:1],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": 2, "device": "cpu", "log_interval": 1000, **config}),
        callbacks=callbacks,
        discover=False,
    )


class Weights(TrainerCallback):
    """Notes the weight of an `nn.Linear` after each applied update and in each validation."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_step_end(self, trainer, skipped):
        if not skipped:
            self.trained.append(trainer.model.weight.detach().clone())

    def on_validation_end(self, trainer):
        self.validated.append(trainer.model.weight.detach().clone())


def average(weights: Sequence[Tensor], decay: float) -> Tensor:
    """The definition, in float64; the decay is warmed up as in TensorFlow."""
    result = weights[0].double()
    for count, weight in enumerate(weights[1:], start=1):
        share = min(decay, (1 + count) / (10 + count))
        result = share * result + (1 - share) * weight.double()
    return result.float()


@pytest.fixture
def make() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def weights() -> Weights:
    return Weights()


@pytest.fixture
def average_of() -> Callable[[Sequence[Tensor], float], Tensor]:
    return average
