"""What a hosted run is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..config import TrainerConfig
from ..engine.assembly import check_needs
from ..engine.own_callbacks import make_journal, make_manager
from ..processes.group import join_ranks
from ..step.gradients import Gradients
from ..step.precision import Precision
from ..step.update import Updater
from ..step.verdicts import Verdicts
from ..step.weights import Weights
from .losses import HostedLosses
from .view import HostedView

__all__ = ["make_view"]


def make_view(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    config: TrainerConfig,
    *,
    host: str,
    callbacks: Sequence[object],
    discover: bool,
    device: torch.device | None,
) -> tuple[HostedView, HostedLosses]:
    """Returns what callbacks see, and what adds up the losses; `HostedRun` says what the arguments
    are, and what is raised.
    """
    device = next(model.parameters()).device if device is None else device
    manager = make_manager(callbacks, config, discover=discover, progress=False)
    check_needs(manager.plugins, config)
    ranks, precision = join_ranks(device.type), Precision("fp32", device)
    losses = HostedLosses(ranks, host=host)
    updater = Updater(
        "",
        optimizer,
        scheduler,
        Gradients(model, optimizer),
        config=config,
        precision=precision,
        losses=losses,
        verdicts=Verdicts(losses, device, ranks),
        buffers=None,
        weights=Weights(ranks, batches=config.gradient_accumulation_steps),
    )
    view = HostedView(
        model,
        updater,
        host=host,
        config=config,
        device=device,
        callbacks=manager,
        ranks=ranks,
        precision=precision,
    )
    view.journal = make_journal(manager)
    return view, losses
