"""Epochs, batches and updates of a hosted run: what the host tells of them, and what its callbacks
are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer_callback import TrainerCallback
from trainer_callback.calls.manager import CallbackManager

from ..config import TrainerConfig
from ..counters import Position
from ..engine.decision import StopDecider
from ..engine.own_metrics import describe_epoch, describe_interval, find_validated, record
from .losses import HostedLosses
from .sets import HostedSets
from .view import HostedView

__all__ = ["HostedUpdates"]

logger: logging.Logger = logging.getLogger("trainer")


class HostedUpdates:
    """The part of a `HostedRun` between its start and its end; see there.

    Attributes:
        sets: those of a validation.
    """

    def __init__(self, view: HostedView, losses: HostedLosses, decider: StopDecider) -> None:
        """Keeps references."""
        self.view: HostedView = view
        self.manager: CallbackManager = view.manager
        self.hook: TrainerCallback = view.manager.hook
        self.position: Position = view.position
        self.sets: HostedSets = HostedSets(view)
        self._config: TrainerConfig = view.config
        self._ranks, self._updater = view.ranks, view.updater
        self._losses, self._decider = losses, decider
        self._found: dict[str, float] | None = None
        self._loss: Tensor | None = None
        self._outputs: Any = None

    @property
    def asks_outputs(self) -> bool:
        """Whether a callback wants what the model has answered, beside the loss."""
        asked = self.manager.asked
        return any("outputs" in asked.get(each, ()) for each in ("on_forward_end", "on_batch_end"))

    def start_epoch(self, epoch: int, *, batches: int | None) -> None:
        """An epoch begins, or goes on behind a resume.

        Args:
            batches: that it has in this process; None: not known.
        """
        position, self.view.batches_per_epoch = self.position, batches
        if position.epoch_done or position.epoch != epoch:
            position.epoch_done, position.epoch, position.batch = False, epoch, 0
        if position.batch == 0:
            self._losses.start_epoch()
            self._found = None
        position.window = 0
        self.hook.on_epoch_start(trainer=self.view, epoch=epoch)
        self._updater.follow_groups()

    def start_batch(self, batch: Any, *, is_last: bool) -> None:
        """A batch is about to be trained on.

        Args:
            batch: on its device, or on the host.
            is_last: it is the last of the epoch.
        """
        position = self.position
        position.is_last = is_last
        if position.window == 0:
            position.update = position.step + 1
            self.manager.start_update()
            self._ranks.is_in_update = True
        self.hook.on_batch_start(trainer=self.view, batch_idx=position.batch, batch=batch)

    def end_forward(self, loss: Tensor, outputs: Any = None, *, items: float = 1) -> None:
        """The loss of the batch is known.

        Args:
            loss: its mean over the items; 0-dim, unscaled.
            outputs: what the model has answered, if `asks_outputs`.
            items: of the batch, by which its loss weighs in the means.
        """
        own = loss.detach()
        self._loss, self._outputs = own, outputs
        self._losses.add_batch(own, items)
        if "on_forward_end" in self.manager.used:
            self.hook.on_forward_end(trainer=self.view, loss=own.clone(), outputs=outputs)
        self.position.window += 1
        self.position.batch += 1

    def end_backward(self) -> None:
        """The gradients of an update are complete: of the unscaled loss, averaged, not clipped."""
        self.position.step = self.position.update - 1
        rate = self._updater.optimizer.param_groups[0].get("lr")
        self._updater.rate = None if rate is None else float(rate)
        self._updater.total_norm = None
        if "on_backward_end" in self.manager.used:
            self.hook.on_backward_end(trainer=self.view)
        self._updater.gradients.follow()

    def end_clipping(self, total_norm: Tensor | float, limit: float) -> None:
        """The gradients were clipped to `limit`; `total_norm` is their norm before."""
        norm = total_norm if isinstance(total_norm, Tensor) else torch.as_tensor(total_norm)
        norm = norm.detach() if norm.requires_grad else norm
        self._updater.total_norm = norm
        if "on_gradients_clipped" in self.manager.used:
            own, clipped = norm.clone(), norm > limit
            self.hook.on_gradients_clipped(trainer=self.view, total_norm=own, clipped=clipped)

    def end_step(self, *, skipped: bool) -> None:
        """Optimizer and scheduler have stepped, or the step was skipped; the gradients are there
        still.
        """
        position = self.position
        position.step, position.skips = position.update, position.skips + int(skipped)
        self._ranks.is_in_update = False
        self._losses.end_update(position.step)
        if "on_step_end" in self.manager.used:
            self.hook.on_step_end(trainer=self.view, skipped=skipped)

    def end_batch(self, *, ends_update: bool) -> None:
        """A batch, and with it an update where `ends_update`, is done. One without a loss was
        passed over.
        """
        position = self.position
        if self._loss is None:
            position.batch += 1
        elif "on_batch_end" in self.manager.used:
            index, outputs, self._outputs = position.batch - 1, self._outputs, None
            self.hook.on_batch_end(
                trainer=self.view, batch_idx=index, loss=self._loss.clone(), outputs=outputs
            )
        self._loss = self._outputs = None
        if ends_update:
            position.window = 0
            if position.step % self._config.log_interval == 0:
                self.log(describe_interval({"": self._updater}, position, self._losses))

    def log(self, metrics: Mapping[str, float]) -> None:
        """Something else was logged by the host."""
        self.view.log(metrics)

    def start_validation(self) -> None:
        """The host is about to validate. All processes have to call it."""
        self.hook.on_validation_start(trainer=self.view)

    def end_validation(self, metrics: Mapping[str, float], *, ends_epoch: bool) -> None:
        """The host has validated.

        Args:
            metrics: `val_loss` and others, the same in all processes.
            ends_epoch: `end_epoch` follows, with which they are recorded.
        """
        found = {name: float(value) for name, value in metrics.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                logger.warning("the metric %r at update %d is %s.", name, self.view.step, value)
        self.position.metrics.update(found)
        self.hook.on_validation_end(trainer=self.view, metrics=found)
        if ends_epoch:
            self._found = found
        else:
            record(self.view, found)

    def end_epoch(self, *, cut: bool = False, train_loss: float | None = None) -> None:
        """An epoch is over; where `cut`, before its end, for the run ends.

        Args:
            train_loss: its mean, where nobody has told the losses of its batches.
        """
        position, metrics = self.position, self._found or {}
        if cut and self._found is None:
            metrics = find_validated(position) or {}
        self._found, found = None, describe_epoch(position, self._losses)
        if train_loss is not None:
            found["train_loss"] = train_loss
        record(self.view, {**found, **metrics})
        self._decider.agree_on_callbacks()
        self.hook.on_epoch_end(
            trainer=self.view,
            epoch=position.epoch,
            train_loss=found["train_loss"],
            val_loss=metrics.get("val_loss"),
            metrics=position.metrics,
        )
        position.epoch_done = not cut
