"""Runs whose validation losses are a given list, played directly and through the real Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import Trainer, TrainerConfig
from trainer_early_stopping import EarlyStoppingCallback


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Countdown(nn.Linear):
    """One weight, 0 at first, from which each update takes 1: it tells how many there were."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        nn.init.zeros_(self.weight)

    @property
    def updates(self) -> int:
        return round(-self.weight.item())


def build_trainer(
    losses: Sequence[float] | Mapping[int, float],
    callbacks: Sequence[object],
    batches: int = 1,
    **config: Any,
) -> Trainer:
    """Returns a Trainer of a `Countdown` with `losses` as its validation losses.

    Args:
        losses: one per epoch, or step -> loss.
        batches: updates per epoch.
    """
    model = Countdown()

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        if model.training:
            return model(batch).sum()  # of gradient 1
        key = trainer.step if isinstance(losses, Mapping) else trainer.epoch
        return torch.tensor(losses[key], dtype=torch.float64)

    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        [torch.ones(1, 1)] * batches,
        [torch.ones(1, 1)],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": len(losses), "device": "cpu", **config}),
        callbacks=callbacks,
        discover=False,
    )
    return trainer


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    return build_trainer


@dataclass
class Outcome:
    """How a played run ended: epochs that ran, and the epoch whose weights the model holds."""

    callback: EarlyStoppingCallback
    epochs: int
    weights_of_epoch: int


def play_directly(callback: EarlyStoppingCallback, losses: Sequence[float]) -> Outcome:
    host: Any = SimpleNamespace(model=Countdown())
    callback.on_train_start(host, resumed=False)
    epoch = -1
    for epoch, loss in enumerate(losses):
        with torch.no_grad():
            host.model.weight -= 1
        metrics = {"val_loss": loss, "train_loss": 1.0}
        callback.on_epoch_end(host, epoch, train_loss=1.0, val_loss=loss, metrics=metrics)
        if callback.should_stop_training(host):
            break
    status = "finished" if callback.stop_reason is None else "stopped"
    callback.on_train_end(host, SimpleNamespace(status=status))
    return Outcome(callback, epoch + 1, host.model.updates - 1)


def play_in_trainer(callback: EarlyStoppingCallback, losses: Sequence[float]) -> Outcome:
    trainer: Any = build_trainer(losses, [callback])
    result = trainer.train()
    return Outcome(callback, result.epochs, trainer.model.updates - 1)


@pytest.fixture(params=[play_directly, play_in_trainer], ids=["directly", "in_trainer"])
def play(request: pytest.FixtureRequest) -> Callable[..., Outcome]:
    """Plays a list of validation losses, one an epoch, with `EarlyStoppingCallback(**options)`."""

    def play(losses: Sequence[float], **options: Any) -> Outcome:
        return request.param(EarlyStoppingCallback(**options), losses)

    return play
