"""What a run has derived from the structure of its models and optimizers, made anew where callbacks
have changed that in `on_setup`.
"""

from __future__ import annotations

import torch

from ..config import ConfigError
from ..processes.sharding import check_sharding
from ..step.parts import check_parts, check_together
from .accelerated import AcceleratedPrecision
from .alike import check_alike
from .assembly import Setup, move

__all__ = ["follow_structure"]


def follow_structure(setup: Setup) -> None:
    """Checks the changed objects as at the beginning, and puts everything that follows them right;
    all processes have to call it.

    Raises:
        ConfigError: they do not belong together, differ between the processes, or have changed in
            a way that several processes cannot follow.
    """
    view, ranks, updaters = setup.view, setup.ranks, setup.updaters
    whole = view.model
    optimizers = {name: each.optimizer for name, each in updaters.items()}
    schedulers = {
        name: each.scheduler for name, each in updaters.items() if each.scheduler is not None
    }
    check_parts({"": whole}, optimizers, view.config)
    check_together(whole, optimizers, schedulers, tells=False)
    move(whole, optimizers, view.device)
    if check_sharding(whole, ranks.world_size, view.device) != ranks.is_sharded:
        raise ConfigError(
            "the model is sharded otherwise than the run was given it. Call fully_shard before "
            "Trainer(...) or Run(...), not in on_setup."
        )
    check_alike(view, [*updaters.values()])
    if not ranks.is_alone and isinstance(setup.precision, AcceleratedPrecision):
        raise ConfigError(
            "on_setup cannot change what Accelerate has prepared for several processes. Make the "
            "change before accelerator.prepare(...), or leave the callback out."
        )
    setup.recompute()
    ranks.follow_structure(whole)
    for updater in updaters.values():
        _forget_removed(updater.optimizer)
        updater.gradients.agree()
        updater.follow_groups()
    if view.output_dir is not None:
        setup.checkpoint.check_saveable()


def _forget_removed(optimizer: torch.optim.Optimizer) -> None:
    """Drops what an optimizer remembers of parameters that it has no longer: torch saves none of it
    and fails.
    """
    own = {id(each) for group in optimizer.param_groups for each in group["params"]}
    for parameter in [each for each in optimizer.state if id(each) not in own]:
        del optimizer.state[parameter]
