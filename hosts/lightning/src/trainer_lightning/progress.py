"""Where a Lightning trainer stands, as its public attributes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.result import Stop

__all__ = [
    "Turn",
    "count_items",
    "find_stop",
    "is_validated",
    "name_checkpoint",
    "name_set",
    "validation_interval",
]


@dataclass
class Turn:
    """Where a run is, inside its epoch.

    Attributes:
        begun: plugins have been told that it has begun, and not that it has ended.
        in_epoch: an epoch is under way.
        is_last: the batch at hand is the epoch's last.
        ends: it ends an update.
        due: a validation follows it, by the trainer's settings.
        validates_every: batches between two validations of this epoch, or None.
        is_validating: a validation is under way.
        items: of the batch.
        stopped: plugins have ended the run.
        collected: the state of plugins is in the checkpoint that is being saved.
        scale: what losses are multiplied by.
    """

    begun: bool = False
    in_epoch: bool = False
    is_last: bool = False
    ends: bool = False
    due: bool = False
    validates_every: int | None = None
    is_validating: bool = False
    items: float = 1
    stopped: bool = False
    collected: bool = False
    scale: float = 1.0


def find_stop(trainer: Any) -> Stop | None:
    """Returns why a run ends that plugins have not ended; None: its epochs are over."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return Stop("finished", "max_steps")
    done = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    if trainer.should_stop and not done:
        return Stop("stopped", "callback", "trainer.should_stop was set", "Lightning")
    return None


def name_checkpoint(trainer: Any, why: str) -> str:
    """Returns the path of a checkpoint that is saved for plugins; `why` begins its name."""
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    folder = folder or str(Path(trainer.default_root_dir, "checkpoints"))
    return f"{folder}/{why}-step={trainer.global_step}.ckpt"


def name_set(trainer: Any, index: int) -> str:
    """Returns the name of a validation set: Lightning knows them by their numbers."""
    return "val" if len(trainer.num_val_batches) == 1 else f"val_{index}"


def validation_interval(trainer: Any) -> int | None:
    """Returns how many batches lie between two validations of this epoch; None: there is none, or
    the clock decides. They are those of all epochs where `check_val_every_n_epoch` is None.
    """
    every, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or batches is None or batches == float("inf"):
        return None
    due = every is None or (trainer.current_epoch + 1) % every == 0
    return int(batches) if due else None


def is_validated(trainer: Any, batch_idx: int, every: int) -> bool:
    """Whether a validation follows this batch; `every` is from `validation_interval`."""
    over_all = trainer.check_val_every_n_epoch is None
    return bool(((trainer.fit_loop.total_batch_idx if over_all else batch_idx) + 1) % every == 0)


def count_items(batch: Any) -> float:
    """Returns the first dimension of the first tensor of a batch; 1 where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, (list, tuple)) or isinstance(batch, Mapping):
        for part in parts:
            if isinstance(part, (Tensor, Mapping, list, tuple)):
                return count_items(part)
    return 1
