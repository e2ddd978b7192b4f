"""What cannot be: said before the first step, with both who are in each other's way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import transformers

from trainer_callback import UsageError
from trainer_callback.errors import show

__all__ = ["check_entries", "check_trainer", "refuse_two_restorers"]

_ALONE: Final = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
"""How accelerate calls one process, and several that each have the whole model."""


def check_entries(trainer: object) -> None:
    """Raises a `UsageError` where plugins cannot be attached to such an object at all."""
    if not isinstance(trainer, transformers.Trainer):
        raise UsageError(
            f"attach takes a transformers.Trainer, and not {show(trainer)}. Make the trainer "
            "first, then attach plugins to it."
        )


def check_trainer(trainer: transformers.Trainer) -> None:
    """Raises a `UsageError` where a trainer does what plugins cannot follow."""
    args, divided = trainer.args, _name_strategy(trainer)
    if args.auto_find_batch_size:
        _refuse(
            "auto_find_batch_size=True",
            "it begins the training again without telling its callbacks. Set "
            "per_device_train_batch_size instead",
        )
    if args.n_gpu > 1:
        _refuse(
            f"{args.n_gpu} GPUs in one process (DataParallel)",
            "each batch is divided inside the model. Start one process for each GPU with torchrun, "
            "or show it one GPU with CUDA_VISIBLE_DEVICES=0",
        )
    if divided:
        _refuse(
            divided,
            "no process has the whole model. Use DistributedDataParallel, or train with "
            "trainer.Trainer",
        )


def _refuse(name: str, why: str) -> None:
    raise UsageError(f"attach: plugins cannot be attached to a trainer with {name}: {why}.")


def refuse_two_restorers(args: Any, plugins: Iterable[Any]) -> None:
    """Raises a `UsageError` where host and plugin both put weights back at the end of a run."""
    names = sorted(each.name for each in plugins if each.restores_weights)
    if args.load_best_model_at_end and names:
        raise UsageError(
            f"attach: load_best_model_at_end=True and {' and '.join(names)} both put weights into "
            "the model at the end of the run, and the one would undo the other. Set "
            "load_best_model_at_end=False, or the plugin's own option that restores "
            "(restore_best=False of early_stopping, swap_at_end=False of ema)."
        )


def _name_strategy(trainer: transformers.Trainer) -> str:
    """Returns what divides the model or its batches over processes; empty for nothing."""
    accelerator = trainer.accelerator
    kind = getattr(accelerator.distributed_type, "name", str(accelerator.distributed_type))
    if kind not in _ALONE:
        return kind
    plan = getattr(accelerator, "parallelism_config", None)
    return (
        "" if plan is None or plan.total_size == plan.dp_replicate_size else "a parallelism_config"
    )
