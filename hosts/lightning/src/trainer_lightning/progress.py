"""Where a Lightning trainer stands, as its public attributes tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.result import Stop

__all__ = ["count_items", "find_stop", "name_checkpoint", "validates_behind"]


def find_stop(trainer: Any) -> Stop | None:
    """Returns why a run ends that plugins have not ended; None: its epochs are over."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return Stop("finished", "max_steps")
    done = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    if trainer.should_stop and not done:
        return Stop("stopped", "callback", "trainer.should_stop was set", "Lightning")
    return None


def name_checkpoint(trainer: Any) -> str:
    """Returns the path of a checkpoint that a plugin has asked for."""
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    folder = folder or str(Path(trainer.default_root_dir, "checkpoints"))
    return f"{folder}/requested-step={trainer.global_step}.ckpt"


def validates_behind(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning validates behind this batch, whoever asks it to stop."""
    every, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or batches is None or batches == float("inf"):
        return False
    if every is None:
        return bool((trainer.fit_loop.total_batch_idx + 1) % batches == 0)
    return bool((trainer.current_epoch + 1) % every == 0 and (batch_idx + 1) % batches == 0)


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
