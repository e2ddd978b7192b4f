"""Small runs of the real Trainer with a gradient monitor, and the record that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import Trainer, TrainerConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Two blocks with dropout and a head: 8 -> 8 -> 8 -> 1."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1)) for _ in range(2)
        )
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def mean_square(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).float().square().mean()


def make_trainer(
    monitor: object,
    output_dir: Path | None,
    *,
    model: nn.Module | None = None,
    batches: Sequence[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] = mean_square,
    others: Sequence[object] = (),
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    **config: Any,
) -> Trainer:
    """Returns a Trainer of 10 batches an epoch."""
    torch.manual_seed(0)
    model = model if model is not None else Net()
    generator = torch.Generator().manual_seed(1)
    if batches is None:
        batches = [torch.randn(4, 8, generator=generator) for _ in range(10)]
    settings = {"epochs": 2, "device": "cpu", "log_interval": 1000, "seed": 3, **config}
    return Trainer(
        model,
        optimizer(model.parameters(), lr=1e-2),
        batches,
        loss_fn=loss_fn,
        config=TrainerConfig(output_dir=output_dir, **settings),
        callbacks=[*([monitor] if monitor is not None else []), *others],
        discover=False,
    )


def read_record(output_dir: Path) -> list[dict[str, Any]]:
    lines = (output_dir / "gradient_flow" / "gradients.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def make() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def record_of() -> Callable[[Path], list[dict[str, Any]]]:
    return read_record
