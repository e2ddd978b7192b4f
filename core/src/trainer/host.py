"""The trainer as callbacks see it: `trainer_callback.TrainerProtocol`, and nothing of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from trainer_callback import GradientStats
from trainer_callback.manager import CallbackManager

from .config import TrainerConfig
from .device import check_ranks, find_device
from .gradients import Gradients
from .keeper import SnapshotKeeper
from .progress import Progress

__all__ = ["Host"]


class Host:
    """What a callback may use of a trainer."""

    rank: Final = 0
    world_size: Final = 1
    is_main_process: Final = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        config: TrainerConfig,
        callbacks: CallbackManager,
    ) -> None:
        check_ranks()
        self.config = config
        self.device: torch.device = find_device(config.device)
        self.model: nn.Module = model.to(self.device)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.callbacks = callbacks
        self.output_dir: Path | None = config.output_dir
        self.progress: Progress = Progress()
        self.has_validation = False
        self.last_update_of_epoch: bool = False
        self.keeper: SnapshotKeeper = SnapshotKeeper(config)
        self._gradients = Gradients(model)
        self._update_step = 0
        self._snapshot_requested = False

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.progress.epoch

    @property
    def step(self) -> int:
        """Optimizer updates done so far, over all epochs and resumes."""
        return self.progress.step

    @property
    def batch_in_epoch(self) -> int:
        """Micro-batches of this epoch that are done."""
        return self.progress.batch_in_epoch

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last known value of every metric; read-only."""
        return MappingProxyType(self.progress.metrics)

    @property
    def snapshot_due(self) -> bool:
        """Known before backward: a snapshot will follow the update now under way, or just done."""
        config, step, is_last = self.config, self._update_step, self.last_update_of_epoch
        if self.output_dir is None:
            return False
        every = config.snapshot_interval
        return (
            self._snapshot_requested
            or (every is not None and step % every == 0)
            or (config.snapshot_epochs and is_last)
            or step == config.max_steps
            or (is_last and self.epoch + 1 == config.epochs)
        )

    def log(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to `on_log` of every callback."""
        values = {name: float(value) for name, value in metrics.items()}
        self.progress.metrics.update(values)
        self.callbacks.table.plain.on_log(trainer=self, metrics=values, step=self.step)

    def log_text(self, name: str, text: str) -> None:
        """Sends a text to `on_log_text` of every callback."""
        for argument, value in (("name", name), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(
                    f"log_text: {argument} must be a str, got {value!r}. Use str(...), or "
                    "trainer.log for numbers."
                )
        self.callbacks.table.plain.on_log_text(trainer=self, name=name, text=text, step=self.step)

    def gradient_stats(
        self, groups: Mapping[str, Sequence[str]] | None = None, *, norm_type: float = 2.0
    ) -> GradientStats:
        """Statistics of the gradients as they are now; see `TrainerProtocol`."""
        return self._gradients.stats(groups, norm_type)

    def request_snapshot(self) -> None:
        """Asks for a snapshot at the next boundary."""
        self._snapshot_requested = True

    def save_weights(self, name: str) -> str:
        """See `TrainerProtocol`."""
        facts = {"step": self.step, "epoch": self.epoch}
        return self.keeper.save_weights(name, self.model, facts)

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        """See `TrainerProtocol`."""
        return self.keeper.load_weights(name, digest, fallback_step, self.model)

    def delete_weights(self, name: str) -> None:
        """See `TrainerProtocol`."""
        self.keeper.delete_weights(name)
