"""What callbacks do beside the training: a pass over its data, and a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from torch import Tensor

from trainer.hosting import HostedRun
from trainer.processes.rng import read_rng, restore_rng

__all__ = ["lend_data"]


def lend_data(run: HostedRun, trainer: transformers.Trainer) -> None:
    """Lets callbacks of `run` go through the trainer's data, and compute its losses."""
    loss_of, make_loader = trainer.compute_loss, trainer.get_train_dataloader

    def compute(batch: Any) -> Tensor:
        given = dict(batch) if isinstance(batch, Mapping) else batch
        with trainer.compute_loss_context_manager():
            loss: Tensor = loss_of(trainer.model_wrapped, given)
        return loss

    def pass_apart(epoch: int) -> Iterator[Any]:
        outside = read_rng(run.view.device)
        loader = make_loader()
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        batches = iter(loader)
        inside = read_rng(run.view.device)
        restore_rng(outside, run.view.device)
        while True:
            outside = read_rng(run.view.device)
            restore_rng(inside, run.view.device)
            batch = next(batches, None)
            inside = read_rng(run.view.device)
            restore_rng(outside, run.view.device)
            if batch is None:
                return
            yield batch

    run.view.loss_of, run.view.pass_apart = compute, pass_apart
