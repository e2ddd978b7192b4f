"""A run that every trainer has to make alike: a tiny regression, its data in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from .tiny import BATCH, make_data, squared_error

__all__ = ["HostTask", "Regression"]

_BATCHES: Final = 6
_VALIDATION: Final = 2


class Regression(nn.Module):
    """What is trained. A trainer that wants a class of its own for that takes `net` into it, so
    that the parameters keep their names.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 4) -> (B, 1)."""
        outputs: Tensor = self.net(inputs)
        return outputs


@dataclass(frozen=True, eq=False)
class HostTask:
    """What a host's function of the group `trainer.hosts` is handed: it trains `model` by
    `make_optimizer`, on one CPU, on `data` in batches of `batch_size`, in their order, validates
    behind each epoch, and writes nothing outside of `place`.

    Attributes:
        model: is trained in place; it draws no random numbers.
        callbacks: the plugins, and no others, in their order.
        place: where the trainer keeps its checkpoints.
        output_dir: where plugins write.
        resumes: go on from the newest checkpoint in `place`, by the trainer's own means.
        epochs: of the run.
        window: micro-batches of an update; each epoch is a multiple of it.
        max_grad_norm: what gradients are clipped to; None: they are not.
        log_interval: updates between two log events.
        save_interval: updates between two checkpoints; one more is saved at the end.
        batch_size: rows of a batch.
    """

    model: Regression
    callbacks: Sequence[Any]
    place: Path
    output_dir: Path
    resumes: bool = False
    epochs: int = 3
    window: int = 2
    max_grad_norm: float | None = 1.0
    log_interval: int = 2
    save_interval: int = 4
    batch_size: int = BATCH

    @cached_property
    def data(self) -> tuple[TensorDataset, TensorDataset]:
        """The training data and those of the validation: inputs (4,) and targets (1,)."""
        generator = torch.Generator().manual_seed(1)
        return make_data(_BATCHES, generator), make_data(_VALIDATION, generator)

    @property
    def compute_loss(self) -> Callable[[nn.Module, Sequence[Tensor]], tuple[Tensor, Tensor]]:
        """(model, batch) -> loss and outputs."""
        return squared_error

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Returns a new one, whose rate is constant."""
        return torch.optim.AdamW(self.model.parameters(), lr=0.01)
