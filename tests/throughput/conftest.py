"""Small runs of the real Trainer, and what they logged."""

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
    batches: Sequence[Any] | None = None,
    val_batches: Sequence[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] = mean_square,
    **config: Any,
) -> Trainer:
    """Returns a Trainer of one epoch of 6 batches of 3."""
    torch.manual_seed(0)
    model = model if model is not None else nn.Linear(4, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches if batches is not None else list(torch.randn(6, 3, 4)),
        val_batches,
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": 1, "device": "cpu", "log_interval": 1000, **config}),
        callbacks=callbacks,
        discover=False,
    )


class Logged(TrainerCallback):
    """Keeps what was logged under throughput/, by update."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def on_log(self, metrics, step):
        mine = {
            name.removeprefix("throughput/"): value
            for name, value in metrics.items()
            if name.startswith("throughput/")
        }
        if mine:
            self.values[step] = mine


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the callback reads."""
    clock = Clock()
    monkeypatch.setattr("trainer_throughput.stopwatch.time", clock)
    return clock


@pytest.fixture
def make() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def logged() -> Logged:
    return Logged()
