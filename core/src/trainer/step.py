"""The step of an update, and what keeps a number that is not finite from the weights."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer_callback import option_text

from .buffers import KeptBuffers
from .config import TrainerConfig
from .gradients import Gradients
from .losses import LossMeter, NonFiniteError
from .parts import check_closure, describe_bad_rate
from .precision import Precision
from .progress import Progress
from .schedules import step_schedule

__all__ = ["Stepper"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST_SKIPPED: Final = 10


class Stepper:
    """Steps optimizer and scheduler, unless the loss or a gradient is NaN or infinite.

    Attributes:
        rate: the learning rate of the last update that a log event follows; None where the
            optimizer's first group has none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        config: TrainerConfig,
        *,
        precision: Precision,
        losses: LossMeter,
        gradients: Gradients,
    ) -> None:
        """Keeps references."""
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._config = config
        self._precision = precision
        self._losses = losses
        self._gradients = gradients
        self._buffers = KeptBuffers(model) if config.on_nonfinite == "skip" else None
        self.rate: float | None = None

    def start(self) -> None:
        """Prepares for an update that may be skipped."""
        if self._buffers is not None:
            self._buffers.keep()

    def step(self, progress: Progress, verdict: Tensor | float | None) -> bool:
        """Takes the step of the update that follows `progress`; returns whether it was skipped.

        Args:
            verdict: a number that is not finite where a gradient is not; None: nobody has looked.

        Raises:
            NonFiniteError: the loss or a gradient is not finite, and that ends the run; so does a
                learning rate.
            ConfigError: the optimizer wants a closure.
        """
        if (progress.step + 1) % self._config.log_interval == 0:
            self._check_rates(progress)
            rate = self._optimizer.param_groups[0].get("lr")
            self.rate = float(rate) if isinstance(rate, (int, float, Tensor)) else None
        searching = self._precision.is_searching
        if not self._losses.fetch(verdict, overflows=searching):
            self._skip(progress)
            return True
        progress.skipped_in_a_row = 0
        if searching and not math.isfinite(self._losses.verdict):
            self._precision.lower_scale()
            return True
        try:
            skipped = self._precision.step(self._optimizer)
        except Exception as error:
            check_closure(self._optimizer, error)
            self._check_rates(progress, error)
            raise
        if self._scheduler is not None and not skipped:
            step_schedule(self._scheduler)
        return skipped

    def _check_rates(self, progress: Progress, cause: Exception | None = None) -> None:
        fault = describe_bad_rate(self._optimizer)
        if fault is not None:
            where = f"epoch {progress.epoch}, update {progress.step + 1}"
            raise NonFiniteError(f"{fault}. That was found at {where}.") from cause

    def _skip(self, progress: Progress) -> None:
        """Deals with a loss or a gradient that is not finite, before it can reach the weights."""
        where = f"epoch {progress.epoch}, update {progress.step + 1}"
        what = self._describe()
        progress.skipped_in_a_row += 1
        if self._config.on_nonfinite == "stop":
            clip, skip = option_text("max_grad_norm"), option_text("on_nonfinite", "skip")
            raise NonFiniteError(
                f"{what} at {where}. The weights are those before it. Lower the learning rate, "
                f"clip with {clip}, or use {skip} where it happens now and then."
            )
        if progress.skipped_in_a_row >= _MOST_SKIPPED:
            raise NonFiniteError(
                f"{_MOST_SKIPPED} updates in a row had a loss or a gradient that is not finite, "
                f"the last at {where}: {what}. Lower the learning rate, or clip with "
                f"{option_text('max_grad_norm')}."
            )
        logger.warning("skipped %s: %s.", where, what)
        self._precision.skip()
        if self._buffers is not None:
            self._buffers.restore()

    def _describe(self) -> str:
        """Says what is not finite, and where it may come from."""
        fault = describe_bad_rate(self._optimizer)
        cause = "" if fault is None else f", and {fault}"
        return f"{self._describe_number()}{cause}"

    def _describe_number(self) -> str:
        if not math.isfinite(self._losses.total):
            return f"the training loss is not finite ({self._losses.total})"
        what = f"the gradient norm is not finite ({self._losses.verdict}"
        bad = None
        if self._config.max_grad_norm is None:  # clipping by NaN makes all of them NaN
            bad = self._gradients.find_bad()
        return f"{what})" if bad is None else f"{what}; the first such gradient is that of {bad})"
