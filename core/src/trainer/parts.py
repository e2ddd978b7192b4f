"""What `Trainer` is handed: refused where it is of the wrong kind, before anything is built."""

from __future__ import annotations

import torch
from torch import nn

from .config import ConfigError, TrainerConfig

__all__ = ["check_parts"]


def check_parts(model: object, optimizer: object, scheduler: object, config: object) -> None:
    """Looks at the objects of a run.

    Raises:
        ConfigError: one is of the wrong kind, or they do not belong together.
    """
    for name, part, kind in (
        ("model", model, nn.Module),
        ("optimizer", optimizer, torch.optim.Optimizer),
        ("config", config, TrainerConfig),
    ):
        if not isinstance(part, kind):
            raise ConfigError(
                f"Trainer: {name} must be a {kind.__name__}, got a {type(part).__name__}. Write "
                "Trainer(model, optimizer, train_loader, val_loader, config=TrainerConfig(...))."
            )
    assert isinstance(model, nn.Module)
    assert isinstance(optimizer, torch.optim.Optimizer)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            f"Trainer: none of the parameters of {type(optimizer).__name__} belongs to the model, "
            "so training would change nothing. Build it from model.parameters(), after fully_shard "
            "if the model is sharded."
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigError(
            "Trainer: ReduceLROnPlateau waits for a metric, and a scheduler is stepped after each "
            "update. Step it in a callback's on_epoch_end: scheduler.step(val_loss)."
        )
