"""A tiny run, and a recorder of its hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import HOOKS, TrainerCallback
from trainer_callback.hookspecs import SPECS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _write_recording_hook(name: str) -> Any:
    arguments = ", ".join(SPECS[name].arguments)
    source = f"def {name}(self, {arguments}):\n    self.calls.append({name!r})\n"
    names: dict[str, Any] = {}
    exec(source, names)
    return names[name]


class Recorder(TrainerCallback):
    """Notes the name of every hook that is called."""

    def __init__(self, state_key: str = "Recorder") -> None:
        self.state_key = state_key
        self.calls: list[str] = []


for _name in HOOKS:
    if _name.startswith(("on_", "should_")):
        setattr(Recorder, _name, _write_recording_hook(_name))


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a run of two epochs with two updates each, with a snapshot at each update."""

    def make(
        *callbacks: object, writes: bool = True, trace_hooks: Any = False, **options: Any
    ) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        options = {"epochs": 2, "device": "cpu", "max_grad_norm": 1.0, "log_interval": 1, **options}
        if writes:
            options.setdefault("output_dir", tmp_path / "run")
            options.setdefault("snapshot_interval", 1)
        batches = [torch.ones(2, 4), torch.full((2, 4), 0.5)]
        return Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            batches,
            batches[:1],
            loss_fn=lambda model, batch: model(batch).square().mean(),
            config=TrainerConfig(**options),
            callbacks=callbacks,
            discover=False,
            trace_hooks=trace_hooks,
        )

    return make
