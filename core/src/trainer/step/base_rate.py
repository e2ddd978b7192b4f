"""The rate that a schedule is built on, changed where a run resumes: the whole schedule follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ..config import ConfigError
from .schedules import follows_metric, parts_of

__all__ = ["RATES", "change_base_rate", "read_base_rate"]

RATES: Final = ("max_lr", "initial_lr", "lr")
"""Where a group has the rate that its schedule is built on: the first of these that is there."""
_IN_GROUP: Final = (*RATES, "min_lr", "swa_lr")
_IN_SCHEDULE: Final = ("base_lrs", "max_lrs", "eta_min", "_last_lr")


def read_base_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the rate that the first group, and its schedule, is built on; 0 where it has none."""
    first = optimizer.param_groups[0]
    return float(next((first[name] for name in RATES if name in first), 0.0))


def change_base_rate(
    optimizer: torch.optim.Optimizer, scheduler: Any, rate: float, *, option: str
) -> str:
    """Makes `rate` the one that the optimizer's first group, and its schedule, is built on. All
    other rates, those of other groups and those on the way of the schedule (`eta_min`), are
    multiplied by the same factor. Returns a sentence that says so. `option` is what has asked for
    it, for messages.

    Raises:
        ConfigError: the rate is 0, or the schedule does not say what it is built on.
    """
    inner = getattr(scheduler, "scheduler", scheduler)  # of one that Accelerate has prepared
    first = optimizer.param_groups[0]
    before, now = read_base_rate(optimizer), float(first.get("lr", 0.0))
    if not before:
        raise ConfigError(
            f"{option}: the rate so far is 0, of which nothing is a multiple. Set it in a "
            "callback's on_train_start."
        )
    scale = _make_scale(before, rate)
    parts = [] if scheduler is None else parts_of(inner)
    for part in parts:
        if not (hasattr(part, "base_lrs") or hasattr(part, "_schedulers") or follows_metric(part)):
            raise ConfigError(
                f"{option}: {type(part).__name__} has no base_lrs, so nobody knows what its rates "
                "are made of. Set them in a callback's on_train_start."
            )
    for group in optimizer.param_groups:
        group.update({name: scale(group[name]) for name in _IN_GROUP if name in group})
    for part in parts:
        own = vars(part)
        own.update({name: scale(own[name]) for name in _IN_SCHEDULE if name in own})
    text = f"the learning rate is {rate!r} from here on, and was {before!r}"
    if not {*RATES[:-1]}.isdisjoint(first) or len(optimizer.param_groups) > 1:
        text += (
            f": all rates of the schedule and of {len(optimizer.param_groups)} groups are "
            f"multiplied by {rate / before:.6g}; the first is now {float(first['lr']):.6g} and was "
            f"{now:.6g}"
        )
    return f"{text}."


def _make_scale(before: float, rate: float) -> Callable[[Any], Any]:
    """Returns what multiplies numbers, tensors and lists of them; `before` becomes `rate`."""

    def scale(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(scale, value))
        if isinstance(value, Tensor):
            return value * (rate / before)
        return rate if value == before else value * (rate / before)

    return scale
