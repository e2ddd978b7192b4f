"""A monitor only reads: it changes no bit of a run, and needs no more memory as it goes on."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import Trainer
from trainer_callback import TrainerCallback
from trainer_gradient_monitor import GradientMonitorCallback

Make = Callable[..., Trainer]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_grad_norm": 0.01},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.01},
        {"precision": "bf16"},
        {"precision": "fp16", "max_grad_norm": 0.01},
    ],
    ids=["plain", "clipped", "accumulated", "bf16", "fp16"],
)
def test_weights_are_bit_equal_with_and_without(
    make: Make, tmp_path: Path, config: dict[str, Any]
) -> None:
    monitor = GradientMonitorCallback(
        monitor_interval=1, monitor_histogram=True, monitor_norm_type=3.0
    )
    trainers = [
        make(monitor, tmp_path / "with", snapshot_interval=5, **config),
        make(None, tmp_path / "without", snapshot_interval=5, **config),
    ]
    for trainer in trainers:
        trainer.train()
    ours, theirs = (trainer.model.state_dict() for trainer in trainers)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    moments = [
        [t for entry in trainer.optimizer.state.values() for t in entry.values()]
        for trainer in trainers
    ]
    for a, b in zip(*moments, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_left_as_they_were(make: Make, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):
        def __init__(self, state_key: str) -> None:
            self.state_key = state_key

        def on_backward_end(self, trainer: Any) -> None:
            named = trainer.model.named_parameters()
            seen.append({name: p.grad.clone() for name, p in named})

    monitor = GradientMonitorCallback(report=False, monitor_interval=1, monitor_histogram=True)
    trainer = make(None, tmp_path, others=[Look("a"), monitor, Look("b")], epochs=1)
    trainer.train()
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_memory_is_flat_over_5000_measured_steps(
    make: Make, record_of: Callable[[Path], list[Any]], tmp_path: Path
) -> None:
    blocks: list[int] = []
    kilobytes: list[int] = []

    class Weigh(TrainerCallback):
        def on_batch_end(self, trainer: Any) -> None:  # type: ignore[override]
            if trainer.step in (1000, 3000, 5000):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
                kilobytes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def steady(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).sum()

    monitor = GradientMonitorCallback(monitor_interval=1, history=64, report=False)
    batches = [torch.ones(2, 8)] * 5000
    model = nn.Linear(8, 1)
    options = {"model": model, "batches": batches, "loss_fn": steady, "epochs": 1}
    make(monitor, tmp_path, others=[Weigh()], **options).train()
    assert monitor.state.measured == 5000
    assert len(monitor.state.history.samples) <= 64
    assert len(record_of(tmp_path)) == 5000  # the full record is on disk
    for early, late in pairwise(blocks):
        assert late - early < 500  # objects, in 2,000 steps
    assert kilobytes[-1] - kilobytes[0] < 1500
