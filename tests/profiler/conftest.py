"""Small runs of the real Trainer, and their traces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a Trainer of 2 epochs of 6 batches, with a validation set, in `tmp_path / "run"`."""

    def make_trainer(*callbacks: object, loss_fn: Any = None, **config: Any) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        batches = list(torch.randn(6, 3, 4))
        settings = {"epochs": 2, "device": "cpu", "output_dir": tmp_path / "run", **config}
        return Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            batches,
            batches[:2],
            loss_fn=loss_fn or (lambda model, batch: (model(batch) - 1).square().mean()),
            config=TrainerConfig(**settings),
            callbacks=callbacks,
            discover=False,
        )

    return make_trainer


@pytest.fixture
def traces(tmp_path: Path) -> Callable[[], dict[str, list[str]]]:
    """Reads the traces: name of the file -> the names of its annotated phases and operators."""

    def read() -> dict[str, list[str]]:
        files = sorted((tmp_path / "run" / "profiler").iterdir())
        events = {path.name: json.loads(path.read_text())["traceEvents"] for path in files}
        return {
            name: [event["name"] for event in found if event.get("ph") == "X"]
            for name, found in events.items()
        }

    return read
