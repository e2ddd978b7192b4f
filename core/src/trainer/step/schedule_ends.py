"""How far a schedule comes in a run: one that ends before it, and one that counts other things than
the run steps it by. Reads schedulers, steps none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from torch.optim import lr_scheduler

from trainer_callback import option_text

from ..config import ConfigError, TrainerConfig
from ..counters import Position
from .schedules import follows_metric, parts_of

__all__ = ["count_steps", "list_ends"]

_LEAST_FACTOR: Final = 1e-6
"""A rate that is multiplied by less than this trains nothing."""
_FEWEST_TURNS: Final = 20
"""Of a schedule that says how long it is: it is over so often before the run is."""


def count_steps(position: Position, config: TrainerConfig, batches: int | None) -> int | None:
    """Returns how often this run will step a scheduler, or None where nobody knows.

    Args:
        batches: of an epoch.
    """
    window = config.gradient_accumulation_steps
    if config.scheduler_interval == "update":
        total = position.updates_in_all(batches, window, config.epochs, config.max_steps)
        return None if total is None else max(0, total - position.step)
    by_steps = None if config.max_steps is None else max(0, config.max_steps - position.step)
    epochs = max(0, config.epochs - position.epochs_done)
    if batches is None:
        return epochs if by_steps is None else None
    done = math.ceil(min(batches, position.batch) / window) if position.is_mid_epoch else 0
    each = math.ceil(batches / window)
    return epochs if by_steps is None else min(epochs, (by_steps + done) // each)


def list_ends(
    scheduler: Any, left: int | None, config: TrainerConfig, *, changed: bool
) -> Iterator[str]:
    """Yields a sentence for each part of `scheduler` whose rate falls to 0, or rises again, before
    the run ends, and for one that counts epochs and is stepped by updates.

    Args:
        left: steps of the scheduler to come, or None where that is not known.
        changed: the schedule is another one than the run was built with. Only then a cosine that
            rises again once is told of: somebody may want it.

    Raises:
        ConfigError: one cannot be stepped to the end of the run.
    """
    if scheduler is None or left is None or follows_metric(scheduler):
        return
    unit = config.scheduler_interval
    done = getattr(parts_of(scheduler)[-1], "last_epoch", 0)
    done = getattr(scheduler, "last_epoch", done)
    for part, end in _reached(scheduler, done + left):
        name, first, last = type(part).__name__, done + left - end, done + left
        if isinstance(part, lr_scheduler.OneCycleLR) and end > part.total_steps:
            raise ConfigError(
                f"{name} ends at {unit} {first + part.total_steps} (total_steps), and this run at "
                f"{unit} {last}: a step behind its end is an error. Train for fewer epochs "
                "or max_steps, or start a run with another schedule."
            )
        total = getattr(part, "total_iters", end)
        to_zero = isinstance(part, lr_scheduler.PolynomialLR) or (
            isinstance(part, lr_scheduler.LinearLR) and part.end_factor == 0
        )
        if to_zero and end > total:
            yield (
                f"{name}: the learning rate is 0 from {unit} {first + total} on, and the run goes "
                f"on to {unit} {last} (total_iters={total})."
            )
        effect = _describe_unit(part, end, config)
        if effect is not None:
            yield f"{name}{effect}"
        elif changed and isinstance(part, lr_scheduler.CosineAnnealingLR) and end > part.T_max:
            yield (
                f"{name}: the learning rate rises again from {unit} {first + part.T_max} on "
                f"(T_max={part.T_max}), and the run goes on to {unit} {last}."
            )


def _describe_unit(part: Any, end: int, config: TrainerConfig) -> str | None:
    """Returns what comes of a schedule that seems to count in another unit than it is stepped by.

    Args:
        end: how often it is stepped.
    """
    if config.scheduler_interval == "epoch":
        total = getattr(part, "total_steps", 0)
        if isinstance(part, lr_scheduler.OneCycleLR) and total >= _FEWEST_TURNS * end > 0:
            other = option_text("scheduler_interval", "update")
            return f" has {total} steps, and is stepped {end} times, once per epoch. Use {other}."
        return None
    effect, factor = "", _factor(part, end)
    if factor < _LEAST_FACTOR:
        effect = f"the learning rate is multiplied by {factor:.0e} until the run ends"
    else:
        length = _length(part)
        if length is not None and length <= config.epochs and end >= _FEWEST_TURNS * length:
            effect = f"it is through after {length} of them"
    if not effect:
        return None
    other = option_text("scheduler_interval", "epoch")
    return f" is stepped once per update, {end} times: {effect}. If it counts epochs, use {other}."


def _factor(part: Any, steps: int) -> float:
    """Returns what `steps` steps multiply the rate by; 1 for schedules that do something else."""
    if isinstance(part, lr_scheduler.MultiStepLR):
        times = sum(count for place, count in part.milestones.items() if place <= steps)
    elif isinstance(part, lr_scheduler.StepLR):
        times = steps // part.step_size
    elif isinstance(part, lr_scheduler.ExponentialLR):
        times = steps
    else:
        return 1.0
    return float(part.gamma**times) if 0 < part.gamma < 1 else 1.0


def _length(part: Any) -> int | None:
    """Returns the number of steps after which a schedule has done, or does again, what it is for;
    None where it says no such number.
    """
    if isinstance(part, lr_scheduler.MultiStepLR):
        return max(part.milestones, default=None)
    if isinstance(part, lr_scheduler.CosineAnnealingLR):
        return int(part.T_max)
    if isinstance(part, lr_scheduler.CosineAnnealingWarmRestarts):
        return int(part.T_0) if part.T_mult == 1 else None
    return None


def _reached(scheduler: Any, end: int) -> Iterator[tuple[Any, int]]:
    """Yields each innermost part of `scheduler` and how often it has been stepped when the whole
    has been `end` times.
    """
    parts = getattr(scheduler, "_schedulers", None)
    if parts is None:
        yield scheduler, end
        return
    starts, ends = [0] * len(parts), [end] * len(parts)
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        starts = [0, *scheduler._milestones]
        ends = [*scheduler._milestones, end]
    for part, start, stop in zip(parts, starts, ends, strict=True):
        yield from _reached(part, min(stop, end) - start)
