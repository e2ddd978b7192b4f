"""What a run logs of itself: of an interval of updates, of a validation and of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..counters import Position
from ..step.loss_meter import LossMeter
from ..step.update import Updater
from ..view.view import View

__all__ = ["describe_epoch", "describe_interval", "find_validated", "record"]


def describe_interval(
    updaters: Mapping[str, Updater], position: Position, losses: LossMeter
) -> dict[str, float]:
    """Returns the metrics of the update that has ended, and the mean losses since the last call.

    Args:
        updaters: name of the optimizer -> its step; "" is one without a name.
    """
    found: dict[str, float] = {}
    for name, updater in updaters.items():
        of = f"/{name}" if name else ""
        if updater.rate is not None:
            found[f"learning_rate{of}"] = updater.rate
        if updater.total_norm is not None:
            found[f"grad_norm{of}"] = float(updater.total_norm)
    if position.skips:
        found["skipped_updates"] = position.skips
    means = losses.take_interval()
    return {**found, **{f"loss/{name}" if name else "loss": means[name] for name in means}}


def describe_epoch(position: Position, losses: LossMeter) -> dict[str, float]:
    """Returns the metrics of the epoch so far: `train_loss`, which is NaN where there was no loss,
    and with named optimizers `train_loss/NAME`.
    """
    means = losses.epoch_means()
    found = {"train_loss": sum(means.values()) if means else math.nan}
    found.update({f"train_loss/{name}": mean for name, mean in means.items() if name})
    if position.skips:
        found["skipped_updates"] = position.skips
    return found


def find_validated(position: Position) -> dict[str, float] | None:
    """Returns what a validation has found at this update, if there was one."""
    last = position.history[-1] if position.history else {}
    if last.get("step") != position.step or "train_loss" in last:
        return None
    return {name: value for name, value in last.items() if name not in ("epoch", "step")}


def record(view: View, metrics: Mapping[str, float]) -> None:
    """Logs the metrics of a validation or of an epoch, and keeps them for the result."""
    position = view.position
    view.log(metrics)
    position.history.append({"epoch": position.epoch, "step": position.step, **metrics})
