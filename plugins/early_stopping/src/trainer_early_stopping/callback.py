"""The callback: which value is looked at when, and what follows from it.

`decision` judges the numbers, `weights` keeps the weights, `options` refuses what makes no sense.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from trainer_callback import (
    OptionError,
    StopRequest,
    TrainerCallback,
    TrainerProtocol,
    hookimpl,
    option_text,
)
from trainer_callback.values import check_types

from .decision import Rule, State, StopReason
from .messages import describe_best, describe_start, describe_stop
from .names import find_fault
from .options import PREFIX, require_count, require_margin, require_mode
from .weights import BestWeights

__all__ = ["EarlyStoppingCallback"]

logger: Final = logging.getLogger("trainer.early_stopping")

_OTHER_METRIC: Final = (
    "early stopping watched %s before the resume and watches %s now: it starts afresh."
)
_WATCH_ANOTHER: Final = "watch one of %s%s"
_COMES_LATER: Final = ". If it comes later, use %s, or %s, which waits for it with a warning"
_STOPPED_AGAIN: Final = (
    "early stopping had ended this run, and ends it again: %s: %s Use %s to go on."
)
_SILENT: Final = (
    "early stopping: %s had its last value in epoch %d, and none by the end of epoch %d. Until a "
    "new one comes, early stopping cannot stop the run. Log it in each epoch."
)
_TOO_SHORT: Final = (
    "early stopping watches %s This run has %d epochs, so early stopping cannot end it%s."
)


class EarlyStoppingCallback(TrainerCallback):
    """Stops when a metric has stopped improving, and puts the best weights back.

    A check is a look at a new value of the metric, a miss is a check without an improvement.
    Epochs count from 0.

    Args:
        patience: stop after this many checks in a row without an improvement
        min_delta: an improvement is a change for the better by more than this
        min_delta_mode: min_delta is an amount (abs), or a share of the best value (rel)
        restore_best: put back the weights of the best check at the end of the run
        monitor: the metric to watch: val_loss, train_loss, or any other that is logged
        mode: whether lower (min) or higher (max) is better; auto tells by the metric's name
        check_on: look after each validation, or at the end of each epoch only
        start_from_epoch: earlier epochs are ignored
        min_epochs: do not stop before this many epochs are done; misses count all the same
        baseline: an improvement must beat this too, or it counts as a miss
        stopping_threshold: stop at once when the metric is better than this
        divergence_threshold: stop at once when the metric is worse than this
        check_finite: stop at once when the metric is NaN or infinite
        strict: a metric that does not exist is an error; if off, a warning
        on_resume_stopped: what a run that had stopped does when it is resumed with these options
        state_key: name of this instance, where a run has several
    """

    option_prefix: ClassVar[str | None] = PREFIX
    logs_metrics: tuple[str, ...] | None = ("restored_*",)

    def __init__(
        self,
        patience: int = 5,
        min_delta: float = 0.0,
        *,
        min_delta_mode: Literal["abs", "rel"] = "abs",
        restore_best: bool = True,
        monitor: str = "val_loss",
        mode: Literal["auto", "min", "max"] = "auto",
        check_on: Literal["validation", "epoch"] = "validation",
        start_from_epoch: int = 0,
        min_epochs: int = 0,
        baseline: float | None = None,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = False,
        strict: bool = True,
        on_resume_stopped: Literal["stop", "continue"] = "stop",
        state_key: str | None = None,
    ) -> None:
        """Keeps each option as the attribute of its name; `auto` has become min or max there.

        Raises:
            ValueError: an option is out of range, or `monitor` does not tell its direction.
        """
        self.patience: int = require_count("patience", patience, 1, "to stop at the first miss")
        self.min_delta: float = require_margin(min_delta)
        check_types(EarlyStoppingCallback, locals(), PREFIX)
        self.min_delta_mode = min_delta_mode
        self.restore_best = restore_best
        self.restores_weights: bool = restore_best
        self.monitor = monitor
        self.mode = require_mode(mode, monitor)
        self.check_on = check_on
        self.start_from_epoch: int = require_count(
            "start_from_epoch", start_from_epoch, 0, "for none"
        )
        self.min_epochs: int = require_count("min_epochs", min_epochs, 0, "for no minimum")
        self.baseline: float | None = _to_float(baseline)
        self.stopping_threshold: float | None = _to_float(stopping_threshold)
        self.divergence_threshold: float | None = _to_float(divergence_threshold)
        self.check_finite = check_finite
        self.strict = strict
        self.on_resume_stopped = on_resume_stopped
        self.state_key = state_key
        self.state: State = self._new_state()
        self._weights = BestWeights(state_key)

    @property
    def best(self) -> float | None:
        """The value at the last improvement; None before the first."""
        return self.state.best

    @property
    def best_epoch(self) -> int | None:
        """The epoch of `best`."""
        return self.state.best_epoch

    @property
    def best_step(self) -> int | None:
        """The updates done when `best` was seen."""
        return self.state.best_step

    @property
    def wait(self) -> int:
        """The misses in a row."""
        return self.state.wait

    @property
    def stopped_epoch(self) -> int | None:
        """The epoch in which it asked for the end; None if it did not."""
        return self.state.stopped_epoch

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it asked for the end; None if it did not."""
        return self.state.stop_reason

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._start_afresh()
        if state is None:  # called by hand, as in the first version
            state = checkpoint.get("callback_state", {}).get(self.state_key or type(self).__name__)
        if state is None:
            return
        before, now = tuple(state["fingerprint"]), self.state.fingerprint
        if before != now:
            logger.warning(_OTHER_METRIC, " ".join(before), " ".join(now))
            return
        self.state = State.from_saved(state)
        if self.state.stop_reason is not None:
            self._resume_stopped()

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self._start_afresh()
        if self.restore_best:
            self._weights.claim(trainer)
            self._weights.check(trainer, self.state)
        if self.monitor == "val_loss" and not getattr(trainer, "has_validation", True):
            other = option_text("monitor", "train_loss", PREFIX)
            self._report_missing("without a validation set", f"use {other}")
        elif (fault := find_fault(self.monitor, trainer)) is not None:
            self._report_missing(*fault)
        elif self.state.stop_reason is None:
            self._announce(trainer)

    def on_log(self, metrics: Mapping[str, float]) -> None:  # type: ignore[override]
        if self.monitor in metrics:
            self.state.unread = True

    @hookimpl(trylast=True)  # other callbacks may log the metric in the same event
    def on_validation_end(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:
        if self.check_on != "validation" or not metrics:  # none: a signal cut it short
            return
        value = metrics.get(self.monitor)
        if value is None and self.state.unread:
            value = trainer.metrics[self.monitor]
        if value is not None:
            self.state.validated = True
            self._check(trainer, getattr(trainer, "epoch", self.state.epochs_done), value)
        elif self.monitor == "val_loss" and self.state.checks == 0:  # a host may not compute it
            advice = _WATCH_ANOTHER % (", ".join(sorted(metrics)), "")
            self._report_missing("among the metrics of a validation", advice)

    @hookimpl(trylast=True)
    def on_epoch_end(
        self,
        trainer: TrainerProtocol,
        epoch: int,
        train_loss: float,
        val_loss: float | None,
        metrics: Mapping[str, float],
    ) -> None:
        validated, self.state.validated = self.state.validated, False
        self.state.epochs_done = epoch + 1
        losses = {"train_loss": train_loss, "val_loss": val_loss}
        value = None if validated else self._find_new(losses, metrics, epoch)
        if value is not None:
            self._check(trainer, epoch, value)
        elif not self.state.silence_told and self._rule.is_silent(self.state, epoch):
            self.state.silence_told = True
            logger.warning(_SILENT, self.monitor, self.state.last_epoch, epoch)
        self._decide(epoch)  # min_epochs may be reached without a check

    def should_stop_training(self, trainer: TrainerProtocol) -> StopRequest | bool:
        reason = self.state.stop_reason
        return StopRequest(reason, self._describe_stop()) if reason is not None else False

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        self._weights.note_snapshot(self.state, step)
        return asdict(self.state)

    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        self._weights.tidy(trainer, self.state, path, step)

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        self._weights.release(trainer)
        if self.restore_best and result.status in ("finished", "stopped"):
            self._weights.restore(trainer, self.state, self.monitor)
            self._weights.finish(trainer, self.state)

    @property
    def _rule(self) -> Rule:
        return Rule(**{option.name: getattr(self, option.name) for option in fields(Rule)})

    def _new_state(self) -> State:
        return State(fingerprint=(self.monitor, self.mode, self.min_delta_mode))

    def _start_afresh(self) -> None:
        self.state = self._new_state()
        self._weights.forget()

    def _announce(self, trainer: TrainerProtocol) -> None:
        config = getattr(trainer, "config", None)
        least = max(self.min_epochs, getattr(config, "min_epochs", 0))
        once = self.check_on == "epoch" or self.monitor == "train_loss"
        interval = None if once else getattr(config, "eval_interval", None)
        rule = replace(self._rule, min_epochs=least)
        first_epoch = max(self.start_from_epoch, self.state.epochs_done)
        text = describe_start(self.monitor, rule, self.state, first_epoch, interval)
        epochs = getattr(config, "epochs", math.inf)
        least = rule.epochs_left(self.state, first_epoch, several=interval is not None)
        if least < epochs:
            logger.info("early stopping watches %s", text)
        else:
            restores = self.restore_best and self.start_from_epoch < epochs
            rest = "; it only restores the best weights" if restores else ""
            logger.warning(_TOO_SHORT, text, epochs, rest)
        if self.min_delta_mode == "rel" and self.min_delta == 0:
            logger.info("early stopping: min_delta_mode rel has no effect without a min_delta.")

    def _find_new(
        self, losses: Mapping[str, float | None], metrics: Mapping[str, float], epoch: int
    ) -> float | None:
        """Returns the metric at the end of an epoch, if it has a value that was not seen yet."""
        if self.monitor in losses:
            return losses[self.monitor]
        if self.monitor in metrics:
            return None if self.state.unread is False else metrics[self.monitor]
        if self.state.checks == 0 and epoch >= self.start_from_epoch:
            known = ", ".join(sorted({*losses, *metrics}))
            later = _COMES_LATER % (
                option_text("start_from_epoch", prefix=PREFIX),
                option_text("strict", False, PREFIX),
            )
            advice = _WATCH_ANOTHER % (known, later if self.strict else "")
            self._report_missing(f"among the metrics by the end of epoch {epoch}", advice)
        return None

    def _check(self, trainer: TrainerProtocol, epoch: int, value: float) -> None:
        """Looks at a new value: the one place where the count and the best change."""
        state, rule, earlier = self.state, self._rule, self.state.best
        state.unread = None if state.unread is None else False
        state.last_epoch = epoch
        if epoch < self.start_from_epoch:
            return
        if rule.observe(state, float(value), epoch, getattr(trainer, "step", 0)):
            if self.restore_best:
                self._weights.keep(trainer, state)
            logger.info("early stopping: %s", describe_best(self.monitor, rule, state, earlier))
        self._decide(epoch)

    def _decide(self, epoch: int) -> None:
        """Asks for the end, or takes that back where a later check says otherwise."""
        state, asked = self.state, self.state.stop_reason is not None
        state.stop_reason = self._rule.reason_to_stop(state)
        state.stopped_epoch = None if state.stop_reason is None else epoch
        if state.stop_reason is not None and not asked:
            reason = state.stop_reason
            logger.info("early stopping ends the run: %s: %s", reason, self._describe_stop())

    def _describe_stop(self) -> str:
        return describe_stop(self.monitor, self._rule, self.state)

    def _resume_stopped(self) -> None:
        """Judges the earlier stop by the options as they are now."""
        state = self.state
        if self.on_resume_stopped == "continue":
            state.wait, state.last_value = 0, None
        state.stop_reason = self._rule.reason_to_stop(state)
        if state.stop_reason is not None:
            goes_on = option_text("on_resume_stopped", "continue", PREFIX)
            logger.info(_STOPPED_AGAIN, state.stop_reason, self._describe_stop(), goes_on)
            return
        state.stopped_epoch = None
        logger.info("early stopping had ended this run; by its options now, it goes on.")

    def _report_missing(self, where: str, advice: str) -> None:
        end = "" if where.endswith("?") else "."
        text = f"EarlyStoppingCallback: no {self.monitor} {where}{end} To stop early, {advice}."
        if self.strict:
            raise OptionError(text)
        if not self.state.warned:
            logger.warning("%s", text)
        self.state.warned = True


def _to_float(number: float | None) -> float | None:
    return None if number is None else float(number)
