"""Learning-rate schedules: their names and settings, what of a new one has no effect at a resume,
and their steps.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

from torch import Tensor
from torch.optim import lr_scheduler

from trainer_callback import RunError
from trainer_callback.state import to_plain

__all__ = [
    "ScheduleError",
    "compare_functions",
    "describe_schedule",
    "extend_schedule",
    "fixed_settings",
    "follows_metric",
    "is_kept",
    "list_unused",
    "name_schedule",
    "needed_arguments",
    "parts_of",
    "step_schedule",
]

logger: logging.Logger = logging.getLogger("trainer")

_DERIVED: Final = ("max_lrs", "total_size", "step_ratio", "base_momentums", "max_momentums")
"""What torch's schedulers make of their arguments, and never change. `base_lrs` is not among them:
the optimizer's groups have it as `initial_lr`."""


_BY_GROUP: Final = (
    *(lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR),
    *(lr_scheduler.ConstantLR, lr_scheduler.LinearLR, lr_scheduler.PolynomialLR),
)
"""Those that compute each group's next rate from its last one."""

_EXTENDED: Final = (
    *(lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR, lr_scheduler.ReduceLROnPlateau),
    *(lr_scheduler.CosineAnnealingLR, lr_scheduler.CosineAnnealingWarmRestarts),
)
"""Those that have a list with a value for each group."""


class ScheduleError(RunError):
    """A schedule ended before the run."""


def name_schedule(scheduler: Any) -> str:
    """Returns the class's name, with those of the parts in brackets."""
    parts = ", ".join(map(name_schedule, getattr(scheduler, "_schedulers", ())))
    return type(scheduler).__name__ + (f"({parts})" if parts else "")


def fixed_settings(group: Mapping[str, Any], scheduler: Any) -> dict[str, Any]:
    """Returns the settings of an optimizer's `group` that no schedule moves; also one that is
    stepped by somebody else leaves its traces there.
    """
    found = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    if scheduler is not None or "initial_lr" in group:
        del found["lr"]
    cycles = any(getattr(part, "cycle_momentum", False) for part in parts_of(scheduler))
    if cycles or "max_momentum" in group:
        found.pop("momentum", None)
        if "betas" in found:
            found["beta2"] = found.pop("betas")[1]
    return found


def parts_of(scheduler: Any) -> list[Any]:
    """Returns `scheduler` and the schedulers that it is made of, itself first."""
    found = [scheduler]
    for part in getattr(scheduler, "_schedulers", ()):
        found += parts_of(part)
    return found


def follows_metric(scheduler: Any) -> bool:
    """Whether its step takes a metric, as that of ReduceLROnPlateau does."""
    if scheduler is None:
        return False
    inner = getattr(scheduler, "scheduler", scheduler)  # of one that Accelerate has prepared
    if isinstance(inner, lr_scheduler.ReduceLROnPlateau):
        return True
    return next(iter(needed_arguments(scheduler)), "") in ("metric", "metrics")


def needed_arguments(scheduler: Any) -> list[str]:
    """Returns the names of what its step cannot do without."""
    try:
        given = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):  # it has no signature
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in given if each.default is each.empty and each.kind not in several]


def describe_schedule(scheduler: Any) -> list[tuple[str, dict[str, Any]]]:
    """Returns class and settings of each part: the constructor's arguments that are plain
    attributes, and what torch's own make of them. Functions, as LambdaLR has, are not among them.
    """
    return [(type(part).__name__, _settings(part)) for part in parts_of(scheduler)]


def _settings(part: Any) -> dict[str, Any]:
    names = {*inspect.signature(type(part)).parameters, *_DERIVED} - {"optimizer", "last_epoch"}
    found = {name: value for name, value in vars(part).items() if name in names}
    for place, function in enumerate(getattr(part, "lr_lambdas", ())):
        if not isinstance(function, FunctionType):  # an object, whose attributes are in the state
            options = inspect.signature(type(function)).parameters if _is_own(function) else ()
            own = {name: value for name, value in vars(function).items() if name in options}
            found |= {f"lr_lambda[{place}].{name}": value for name, value in own.items()}
    if isinstance(part, lr_scheduler.MultiStepLR):
        found["milestones"] = sorted(n for n, k in part.milestones.items() for _ in range(k))
    if isinstance(part, lr_scheduler.SequentialLR):
        found = {"milestones": part._milestones}
    if isinstance(part, lr_scheduler.OneCycleLR):
        ends = [float(phase["end_step"]) for phase in part._schedule_phases]
        found["the ends of its phases"] = ends
    return {name: to_plain(value) for name, value in found.items() if _is_plain(value)}


def _is_own(function: Any) -> bool:
    """Whether it is an object of somebody's own class, which says what it is made from."""
    return hasattr(function, "__dict__") and type(function).__module__ not in (
        "builtins",
        "functools",
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def list_unused(
    built: list[tuple[str, dict[str, Any]]],
    loaded: list[tuple[str, dict[str, Any]]],
    rate_factor: float,
) -> Iterator[str]:
    """Yields a sentence for each setting of the schedule as it was `built` that the snapshot's has
    replaced; of OneCycleLR only the total, where that differs. A callback that has multiplied the
    rates by `rate_factor` has said so.
    """
    for (name, before), (_, after) in zip(built, loaded, strict=True):
        differing = [
            key
            for key in before
            if not is_kept(before[key], after.get(key), rate_factor if key == "eta_min" else 1.0)
        ]
        if "total_steps" in differing:
            differing = ["total_steps"]
        for key in differing:
            yield (
                f"{name}: {key} {after.get(key)!r} of the snapshot holds; {before[key]!r} has no "
                "effect."
            )


def is_kept(built: object, loaded: object, rate_factor: float) -> bool:
    """Whether a setting is the one that it was built with, or a rate that a callback has multiplied
    by `rate_factor` since.
    """
    if repr(loaded) == repr(built):
        return True
    if rate_factor == 1.0 or not isinstance(built, float) or not isinstance(loaded, float):
        return False
    return _is_close(built * rate_factor, loaded)


def compare_functions(scheduler: Any) -> tuple[str, bool] | None:
    """Compares the functions of a schedule that has just been put where the snapshot had it, with
    the rates that the snapshot's functions gave.

    Returns:
        A sentence, and whether they give other rates now; None for a schedule without functions.
    """
    parts = [part for part in parts_of(scheduler) if getattr(part, "lr_lambdas", ())]
    if not parts:
        return None
    text = f"{type(parts[0]).__name__}: no snapshot keeps its functions"
    seen = True
    for part in parts:
        rates = _rates_of(part)
        seen = seen and rates is not None
        if rates is not None and not all(map(_is_close, rates, part._last_lr)):
            text += (
                f", and this run's are others. The rates were {part._last_lr!r} in the snapshot "
                f"and would be {rates!r} by those of this run, which hold behind the next update."
            )
            return text, True
    if seen:
        return f"{text}. This run's give the rates that the snapshot has here.", False
    return f"{text}. Nobody can see whether this run's are those of the snapshot's run.", False


def _rates_of(part: Any) -> list[float] | None:
    """Returns the rates that the functions of `part` say for the last update; None where they are
    factors of rates that nobody has kept.
    """
    if not isinstance(part, lr_scheduler.LambdaLR) or part.last_epoch < 0:
        return None
    try:
        pairs = zip(part.base_lrs, part.lr_lambdas, strict=True)
        return [float(base * function(part.last_epoch)) for base, function in pairs]
    except Exception:  # it is somebody's function; the next update calls it again
        return None


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-30)


def step_schedule(scheduler: Any, *metric: float, unit: str = "update") -> None:
    """Steps `scheduler`.

    Args:
        metric: what it follows, if it follows one.
        unit: what it counts: `update` or `epoch`.

    Raises:
        ScheduleError: it refuses, as OneCycleLR does behind its end.
    """
    try:
        scheduler.step(*metric)
    except ValueError as error:
        raise ScheduleError(
            f"{type(scheduler).__name__} has no rate for the next {unit}: {error}. Give it as many "
            f"{unit}s as the run has, or end the run before with "
            f"{'max_steps' if unit == 'update' else 'epochs'}."
        ) from error


def extend_schedule(scheduler: Any, groups: Sequence[dict[str, Any]]) -> None:
    """Lets a scheduler take those of the optimizer's `groups` that have come since it was built:
    the rate of a new one is what its schedule is built on. Says so where it cannot.
    """
    for part in parts_of(scheduler):
        known = len(getattr(part, "base_lrs", None) or getattr(part, "min_lrs", None) or ())
        if not known or known >= len(groups) or isinstance(part, _BY_GROUP):
            continue
        functions: Any = getattr(part, "lr_lambdas", ())
        if type(part) in _EXTENDED and all(each is functions[0] for each in functions):
            for group in groups[known:]:
                _extend(part, group, sets_rate=part is scheduler)
        else:
            logger.warning(
                "%s was built over %d of the %d groups of the optimizer: the learning rate of the "
                "others stays as it is, or its step fails. Where a callback adds a group, let it "
                "add that to the lists of trainer.scheduler as well.",
                *(type(part).__name__, known, len(groups)),
            )


def _extend(part: Any, group: dict[str, Any], *, sets_rate: bool) -> None:
    if isinstance(part, lr_scheduler.ReduceLROnPlateau):
        part.min_lrs.append(part.min_lrs[-1])
        return
    rate = group["lr"]
    base = group.setdefault("initial_lr", rate.clone() if isinstance(rate, Tensor) else rate)
    part.base_lrs.append(base)
    if hasattr(part, "lr_lambdas"):
        part.lr_lambdas.append(part.lr_lambdas[0])
    if isinstance(part, lr_scheduler.LambdaLR) and sets_rate and not isinstance(rate, Tensor):
        group["lr"] = base * part.lr_lambdas[0](part.last_epoch)
