"""When a value is an improvement, and when there is a reason to stop: numbers only.

Knows neither trainer nor torch, so that a list of values is enough to test it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

__all__ = ["Mode", "Rule", "State", "StopReason", "guess_mode"]

Mode = Literal["min", "max"]
StopReason = Literal["patience", "stopping_threshold", "divergence_threshold", "non_finite"]

_LOWER_IS_BETTER: Final = ("loss", "error", "perplexity", "ppl", "nll", "bpb")
_HIGHER_IS_BETTER: Final = ("acc", "accuracy", "f1", "bleu", "auc")
_LOWER_WORDS: Final = frozenset({"mse", "rmse", "mae", "wer", "cer"})
"""Whole words: `wer` stands in `power` too."""
_HIGHER_WORDS: Final = frozenset({"iou", "miou", "auroc", "r2", "dice", "precision", "recall"})


@dataclass
class State:
    """All that changes while early stopping runs: what a snapshot keeps of it.

    Epochs count from 0; steps are updates; a check is one look at a new value.

    Attributes:
        fingerprint: monitor, mode, min_delta_mode; under another one the numbers mean nothing.
        best: the value at the last improvement. Not the running minimum, which may be lower by
            up to min_delta: slow gains add up against `best`.
        best_epoch, best_step, best_check: where it was seen.
        wait: misses since the count was last reset.
        last_value: what the last check saw.
        checks: how many there were.
        last_epoch: the epoch of the last value, ignored or not; None: none, or not known.
        silence_told: it was reported that no new value has come for long.
        epochs_done: epochs that have ended.
        validated: a validation of the epoch under way was checked already.
        unread: whether the metric was logged since the last check; None: never logged.
        warned: it was reported that the metric does not exist.
        stop_reason, stopped_epoch: what the last check says; None where it says go on.
        best_file, best_digest: the weights of `best_step` on disk, and the proof of them.
        file_of_snapshot: step of a snapshot -> the file of weights that it needs at resume.
    """

    fingerprint: tuple[str, ...]
    best: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    best_check: int | None = None
    wait: int = 0
    last_value: float | None = None
    checks: int = 0
    last_epoch: int | None = None
    silence_told: bool = False
    epochs_done: int = 0
    validated: bool = False
    unread: bool | None = None
    warned: bool = False
    stop_reason: StopReason | None = None
    stopped_epoch: int | None = None
    best_file: str | None = None
    best_digest: str = ""
    file_of_snapshot: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> State:
        """Returns the state that a snapshot holds; what another version kept besides is left."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})


@dataclass(frozen=True)
class Rule:
    """The options that decide. `EarlyStoppingCallback` says what each one means."""

    mode: Mode
    patience: int = 5
    min_delta: float = 0.0
    min_delta_mode: Literal["abs", "rel"] = "abs"
    min_epochs: int = 0
    baseline: float | None = None
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_finite: bool = False

    def observe(self, state: State, value: float, epoch: int, step: int) -> bool:
        """Takes note of one check in `state`, and returns whether `value` is the new best."""
        state.checks += 1
        state.last_value = value
        improved = self.improves(value, state.best)
        if improved:
            state.best, state.best_epoch = value, epoch
            state.best_step, state.best_check = step, state.checks
        beats_baseline = self.baseline is None or self._is_better(value, self.baseline)
        state.wait = 0 if improved and beats_baseline else state.wait + 1
        return improved

    def improves(self, value: float, best: float | None) -> bool:
        """Returns whether `value` beats `best` by more than the margin, strictly, in float64.

        NaN beats nothing, the first number beats None, infinities compare as numbers. Under
        `check_finite` only a finite value can be best.
        """
        if math.isnan(value) or (self.check_finite and math.isinf(value)):
            return False
        if best is None:
            return True
        margin = self.min_delta
        if self.min_delta_mode == "rel" and math.isfinite(best):  # inf - inf would be NaN
            margin *= abs(best)
        return value < best - margin if self.mode == "min" else value > best + margin

    def reason_to_stop(self, state: State) -> StopReason | None:
        """Returns what `state` says under these options. Nothing is latched: new options count."""
        value, worst, target = state.last_value, self.divergence_threshold, self.stopping_threshold
        if value is None or state.epochs_done < self.min_epochs:
            return None
        if self.check_finite and not math.isfinite(value):
            return "non_finite"
        if worst is not None and self._is_better(worst, value):
            return "divergence_threshold"
        if target is not None and self._is_better(value, target):
            return "stopping_threshold"
        return "patience" if state.wait >= self.patience else None

    def is_silent(self, state: State, epoch: int) -> bool:
        """Returns whether no value has come, up to the end of `epoch`, for longer than patience.

        For at least two epochs more than the last value's: some come each second epoch only.
        """
        last = state.last_epoch
        return last is not None and epoch - last > max(self.patience, 2)

    def checks_left(self, state: State) -> int:
        """Returns how many checks patience lasts at least, if the first of all sees a number."""
        first_is_best = state.best is None and self.baseline is None
        return max(1, self.patience - state.wait + first_is_best)

    def epochs_left(self, state: State, first_epoch: int, *, several: bool) -> int:
        """Returns how many epochs have to be done, at least, before there can be a stop.

        Args:
            first_epoch: the epoch of the next check.
            several: an epoch has several checks, nobody knows how many.
        """
        checks = 1 if self.single_check_options else self.checks_left(state)
        return max(first_epoch + (0 if several else checks), self.min_epochs)

    @property
    def single_check_options(self) -> tuple[str, ...]:
        """The options in force that can stop at a single check."""
        options = {
            "stopping_threshold": self.stopping_threshold is not None,
            "divergence_threshold": self.divergence_threshold is not None,
            "check_finite": self.check_finite,
        }
        return tuple(name for name, given in options.items() if given)

    def _is_better(self, value: float, other: float) -> bool:
        return value < other if self.mode == "min" else value > other


def guess_mode(monitor: str) -> Mode | None:
    """Returns the direction that a metric's name tells, or None where it tells none or both. What
    stands before the last `/` is the name of a set.
    """
    name = monitor.lower().rpartition("/")[2]
    words = {*re.split(r"[^a-z0-9]+", name)}
    lower = any(word in name for word in _LOWER_IS_BETTER) or bool(words & _LOWER_WORDS)
    higher = any(word in name for word in _HIGHER_IS_BETTER) or bool(words & _HIGHER_WORDS)
    if lower == higher:
        return None
    return "min" if lower else "max"
