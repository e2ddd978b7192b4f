"""The step of one optimizer, and what keeps a number that is not finite from the weights."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from trainer_callback import option_text

from ..config import TrainerConfig
from ..counters import Position
from .buffers import KeptBuffers
from .gradient_stats import Norms
from .gradients import Gradients
from .loss_meter import LossMeter
from .losses import NonFiniteError
from .parts import check_closure, describe_bad_rate
from .precision import Precision
from .reach import Reach
from .schedules import extend_schedule, follows_metric, step_schedule
from .verdicts import (
    Settings,
    Verdicts,
    copy_plain,
    copy_settings,
    find_form,
    obeys_found_inf,
    put_back_settings,
)
from .weights import Weights

__all__ = ["Updater"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST_SKIPPED: Final = 10


@dataclass(frozen=True)
class _Before:
    """What there was before a step whose verdict is not read yet.

    Attributes:
        update, batch: its position.
        settings: of the optimizer.
        schedule: the state of the scheduler that steps with it, or None.
        is_norm: the verdict is the norm of the gradients, which is logged.
        norms: of the gradients, on the device.
    """

    update: int
    batch: int
    settings: Settings
    schedule: dict[str, Any] | None
    is_norm: bool
    norms: Norms


class Updater:
    """Steps an optimizer, and a scheduler that counts updates, unless the loss or a gradient is NaN
    or infinite.

    That has to be known before the step, so that each update waits for its device once. Where the
    optimizer obeys a verdict that is on the device, and `skipped` is always False, nothing waits:
    `Verdicts.settle` raises what `step` would have raised, at a log event, and before whatever
    looks at the weights: a validation, a snapshot, an end. That is so on CUDA, with a fused
    optimizer of torch, on_nonfinite="stop", fp32, tf32 or bf16, losses that are means, or sums
    over a number of items that is no tensor, and parameters that are whole.

    Attributes:
        name: of the optimizer; "" where it is the only one.
        optimizer, scheduler, gradients: what it steps, and steps by.
        reach: whether backward passes reach it.
        weights: of its micro-batches, where their losses are sums.
        rate: the learning rate of the last update that a log event follows; None where the
            optimizer's first group has none.
        total_norm: of the gradients of the last update, before clipping; 0-dim, or the number where
            that was read. None: not clipped.
        rate_factor: what a callback has multiplied the rates by that the optimizer was built with.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        gradients: Gradients,
        *,
        config: TrainerConfig,
        precision: Precision,
        losses: LossMeter,
        verdicts: Verdicts,
        buffers: KeptBuffers | None,
        weights: Weights,
    ) -> None:
        """Keeps references.

        Args:
            buffers: those of the model as they were before the update, if it may be skipped.
        """
        self.name = name
        self.optimizer = optimizer
        self.scheduler = scheduler
        by_update = config.scheduler_interval == "update" and not follows_metric(scheduler)
        self._stepped_here = scheduler if by_update else None
        self.gradients = gradients
        self.reach: Reach = Reach(optimizer, is_alone=not name)
        self.weights: Weights = weights
        self._config = config
        self._precision = precision
        self._losses = losses
        self._verdicts = verdicts
        self._buffers = buffers
        self.reset()

    def reset(self) -> None:
        """Forgets the updates of an earlier run."""
        self.rate: float | None = None
        self.total_norm: Tensor | float | None = None
        self._stepped: set[Tensor] = set()
        self._form: tuple[int, ...] = ()
        self._may_wait: bool | None = None
        self.rate_factor: float = 1.0
        self._groups = 1
        self._has_told_empty = False
        self.weights.reset()

    def start(self) -> None:
        """Looks, where an epoch or the run begins, what there is to train."""
        self.gradients.start()
        self._may_wait = None
        self.follow_groups()

    def follow_groups(self) -> None:
        """Lets the scheduler take groups that the optimizer has got."""
        count = len(self.optimizer.param_groups)
        if count > self._groups:
            self._groups = count
            extend_schedule(self.scheduler, self.optimizer.param_groups)

    @property
    def leaves_verdict(self) -> bool:
        """Whether the verdict on the update under way stays on its device. Not on the first step of
        a parameter, in which an optimizer makes its state, whatever `found_inf` is.
        """
        if self._may_wait is None:  # an epoch has begun
            wanted = (
                self._config.on_nonfinite == "stop"
                and self._precision.scaler is None
                and not self.gradients.are_sharded
            )
            self._may_wait = self._verdicts.may_wait(self.optimizer, wanted=wanted)
        if not self._may_wait or (self._losses.are_sums and not self.weights.known):
            return False
        form = find_form(self.optimizer)
        if form != self._form:
            self._stepped.clear()
        return len(self._stepped) == form[0] or self._stepped.issuperset(self._parameters())

    def step(self, position: Position, verdict: Tensor | float | None) -> bool:
        """Takes the optimizer's step in the update of `position`; returns whether it was skipped.

        Args:
            verdict: a number that is not finite where a gradient is not; None: nobody has looked.

        Raises:
            NonFiniteError: the loss or a gradient is not finite, and that ends the run; so does a
                learning rate.
            ConfigError: the optimizer wants a closure.
        """
        if position.update % self._config.log_interval == 0:
            self._check_rates(position)
            rate = self.optimizer.param_groups[0].get("lr")
            self.rate = float(rate) if isinstance(rate, (int, float, Tensor)) else None
        if self.leaves_verdict:
            self._step_unread(position, verdict)
            return False
        self._verdicts.settle()
        return self._step_read(position, verdict)

    def _step_unread(self, position: Position, verdict: Tensor | float | None) -> None:
        """Lets the optimizer, which looks at the verdict on the device, step. One that has come to
        do more than that since the epoch began waits for it.
        """
        schedule = self._stepped_here
        before = _Before(
            position.update,
            position.batch,
            copy_settings(self.optimizer),
            None if schedule is None else copy_plain(schedule.state_dict()),
            is_norm=verdict is not None and verdict is self.total_norm,
            norms=self.gradients.norms,
        )
        end = partial(self._end_unread, position, before)
        undo = partial(self._put_back, before)
        optimizer: Any = self.optimizer
        found = self._verdicts.add(self.name, verdict, end, undo)
        if not obeys_found_inf(optimizer):
            if not found.item():
                self._call_step(position)
            return
        optimizer.found_inf = found
        try:
            self._call_step(position)
        finally:
            del optimizer.found_inf

    def _end_unread(
        self, position: Position, before: _Before, verdict: float, is_good: bool
    ) -> None:
        """Deals with an update whose verdict was read behind its step. A bad one ends the run where
        it was: the later ones have changed nothing but their rates.
        """
        if before.is_norm:
            self.total_norm = verdict
        if is_good:
            position.skipped.pop(self.name, None)
            return
        position.update, position.batch = before.update, before.batch
        position.step = position.update - 1
        self._put_back(before)
        self._skip(position, before.norms)

    def _put_back(self, before: _Before) -> None:
        """Undoes what a step that has left the weights alone has done beside them."""
        if self._stepped_here is not None and before.schedule is not None:
            self._stepped_here.load_state_dict(before.schedule)
        put_back_settings(self.optimizer, before.settings)

    def _step_read(self, position: Position, verdict: Tensor | float | None) -> bool:
        """Reads the verdict, and steps if it is good; returns whether the step was skipped."""
        precision = self._precision
        searching = precision.scaler is not None and precision.is_searching
        is_norm = verdict is not None and verdict is self.total_norm
        if is_checked := searching and verdict is not None:
            verdict = precision.join(verdict, self.optimizer)
        if not self._losses.fetch(verdict, self.name, overflows=searching):
            self._skip(position)
            return True
        if is_norm and math.isfinite(self._losses.own_verdict):
            self.total_norm = self._losses.own_verdict
        if position.skipped:
            position.skipped.pop(self.name, None)
        if self._losses.count is not None:
            self.weights.expected = self._losses.count
            if not self._losses.count:
                self._skip_empty(position)
                return True
        if searching and not math.isfinite(self._losses.verdict):
            precision.skip(overflow=True)
            return True
        skipped = self._call_step(position, is_checked=is_checked)
        if self._may_wait:
            self._stepped.update(self._parameters())
            self._form = find_form(self.optimizer)
        return skipped

    def _parameters(self) -> list[Tensor]:
        """Returns those that the step under way changes."""
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def _call_step(self, position: Position, *, is_checked: bool = True) -> bool:
        """Steps the optimizer, and its scheduler; returns whether the loss scaler has refused."""
        try:
            skipped = self._precision.step(self.optimizer, is_checked=is_checked)
        except Exception as error:
            check_closure(self.optimizer, error)
            self._check_rates(position, error)
            raise
        if self._stepped_here is not None and not skipped:
            step_schedule(self._stepped_here)
        return skipped

    def _check_rates(self, position: Position, cause: Exception | None = None) -> None:
        fault = describe_bad_rate(self.optimizer)
        if fault is not None:
            self._verdicts.settle()  # an earlier update may have been bad
            where = f"epoch {position.epoch}, update {position.update}"
            raise NonFiniteError(f"{fault}. That was found at {where}.") from cause

    def _skip(self, position: Position, norms: Norms | None = None) -> None:
        """Deals with a loss or a gradient that is not finite, before it can reach the weights.

        Args:
            norms: of gradients that are not there any more.
        """
        of_name = f" of {self.name!r}" if self.name else ""
        where = f"epoch {position.epoch}, update {position.update}{of_name}"
        what = self._describe(norms)
        count = position.skipped.get(self.name, 0) + 1
        position.skipped[self.name] = count
        if self._config.on_nonfinite == "stop":
            look = "It is the first one: look for NaN in the data. " * (position.update == 1)
            clip, skip = option_text("max_grad_norm"), option_text("on_nonfinite", "skip")
            raise NonFiniteError(
                f"{what} at {where}. The weights are those before it. {look}Lower the learning "
                f"rate, clip with {clip}, or use {skip} where it happens now and then."
            )
        if count >= _MOST_SKIPPED:
            raise NonFiniteError(
                f"{_MOST_SKIPPED} updates in a row had a loss or a gradient that is not finite, "
                f"the last at {where}: {what}. Lower the learning rate, or clip with "
                f"{option_text('max_grad_norm')}."
            )
        logger.warning("skipped %s: %s.", where, what)
        self._leave_out()

    def _leave_out(self) -> None:
        self._precision.skip()
        if self._buffers is not None:
            if self.name:
                self._buffers.restore_later()
            else:
                self._buffers.restore()

    def _skip_empty(self, position: Position) -> None:
        """Leaves out an update without items: AdamW would move the weights all the same."""
        if not self._has_told_empty:
            self._has_told_empty = True
            logger.warning(
                "skipped epoch %d, update %d: no process had an item in it (the counts of its "
                "losses are 0). Later ones are skipped without a word.",
                *(position.epoch, position.update),
            )
        self._leave_out()

    def _describe(self, norms: Norms | None) -> str:
        """Says what is not finite, and where it may come from."""
        fault = describe_bad_rate(self.optimizer)
        cause = "" if fault is None else f", and {fault}"
        return f"{self._describe_number(norms)}{cause}"

    def _describe_number(self, norms: Norms | None) -> str:
        if not math.isfinite(self._losses.total):
            text = f"the training loss is not finite ({self._losses.total})"
            if not self._losses.empty:
                return text
            return f'{text}; a mean over no items is NaN, also times 0: sum (reduction="sum")'
        what = f"the gradient norm is not finite ({self._losses.verdict}"
        bad = self.gradients.find_bad(norms)
        return f"{what})" if bad is None else f"{what}; the first such gradient is that of {bad})"
