"""A trainer that is as small as one can be and still has everything: two layers, dropout, momentum,
a validation set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig

__all__ = ["BATCH", "TinyTrainer", "make_data", "make_tiny_trainer", "squared_error"]

BATCH: Final = 2
"""Items of a batch."""

_FEATURES: Final = 4


class TinyTrainer(Protocol):
    """The type of the fixture `tiny_trainer`, which is `make_tiny_trainer` with a place to write
    to.
    """

    def __call__(
        self,
        callbacks: Sequence[object] = (),
        *,
        batches: int = 4,
        validation: bool = True,
        model: nn.Module | None = None,
        output_dir: Path | None = None,
        **config: Any,
    ) -> Trainer:
        """Returns a trainer; see `make_tiny_trainer`."""
        ...


def make_tiny_trainer(
    callbacks: Sequence[object] = (),
    *,
    batches: int = 4,
    validation: bool = True,
    model: nn.Module | None = None,
    output_dir: Path | None = None,
    **config: Any,
) -> Trainer:
    """Returns a trainer of a tiny regression, the same one each time: weights, data and order.

    The loss function answers the outputs, too. The model has dropout, so that whoever draws from
    the global random numbers changes its weights. Installed plugins that are live in every run are
    left out.

    Args:
        callbacks: as `Trainer`.
        batches: micro-batches per epoch, of two items each.
        validation: whether there is a validation set.
        model: another one, which makes (B, 1) of (B, 4).
        output_dir: where the run writes; None for a run that writes nothing.
        config: fields of `TrainerConfig`; `epochs` is 2, `device` cpu, `log_interval` 1 unless
            given.
    """
    generator = torch.Generator().manual_seed(1)
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(_FEATURES, 8), nn.Dropout(0.25), nn.Linear(8, 1))
    settings = {"epochs": 2, "device": "cpu", "log_interval": 1, "output_dir": output_dir, **config}
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        DataLoader(make_data(batches, generator), batch_size=BATCH, shuffle=True),
        DataLoader(make_data(2, generator), batch_size=BATCH) if validation else None,
        loss_fn=squared_error,
        config=TrainerConfig(**settings),
        callbacks=callbacks,
        discover=False,
        progress=False,
    )


def make_data(batches: int, generator: torch.Generator) -> TensorDataset:
    """Returns inputs (N, 4) and noisy sums of them (N, 1), in N / `BATCH` batches."""
    inputs = torch.randn(batches * BATCH, _FEATURES, generator=generator)
    noise = torch.randn(batches * BATCH, 1, generator=generator)
    return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True) + 0.1 * noise)


def squared_error(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the loss of a batch, and what the model has answered."""
    inputs, targets = batch
    outputs = model(inputs)
    return nn.functional.mse_loss(outputs, targets), outputs
