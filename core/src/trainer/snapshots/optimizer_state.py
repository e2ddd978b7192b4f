"""The state of one optimizer and its scheduler in a snapshot: read, compared and put back. Of
several optimizers each has its part under its name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from trainer_callback import SnapshotError, option_text

from ..processes.sharding import check_optimizer_state, scatter_optimizer_state
from ..step.base_rate import RATES, change_base_rate
from ..step.parameters import match_parameters, name_parameters
from ..step.schedules import (
    compare_functions,
    describe_schedule,
    fixed_settings,
    is_kept,
    list_unused,
    name_schedule,
)
from ..step.update import Updater

__all__ = ["change_rate", "load_updater", "read_updaters"]

logger: logging.Logger = logging.getLogger("trainer")

_SET_LATER: Final = "To change it, set it in a callback's on_train_start."
_PARTS: Final = ("optimizer", "scheduler", "classes", "parameters", "rate_factor")


def read_updaters(updaters: Mapping[str, Updater], model: nn.Module) -> dict[str, Any]:
    """Returns the parts of a snapshot that belong to optimizers and schedulers. Of an only one,
    whose name is "", a part is the thing itself, else a mapping of names.
    """
    found = {name: _read(updater, model) for name, updater in updaters.items()}
    if "" in found:
        return found[""]
    return {part: {name: each[part] for name, each in found.items()} for part in _PARTS}


def load_updater(
    updaters: Mapping[str, Updater],
    name: str,
    model: nn.Module,
    state: Mapping[str, Any],
    path: Path,
    *,
    new_rate: float | None = None,
) -> bool:
    """Puts optimizer and scheduler `name` into `state`, which is all of a snapshot.

    Args:
        new_rate: the learning rate that follows, which is not told to be without effect.

    Returns:
        Whether the scheduler was built in another way than that of the snapshot.

    Raises:
        SnapshotError: it does not fit them.
    """
    updater = updaters[name]
    theirs: dict[str, Any] = {part: state.get(part) for part in _PARTS}
    _check_same_names(state["optimizer"], updaters, path)
    if name:
        theirs = {part: each and each[name] for part, each in theirs.items()}
    optimizer, saved = updater.optimizer, theirs["optimizer"]
    built = [dict(group) for group in optimizer.param_groups]
    _check_classes(updater, theirs["classes"], path)
    updater.rate_factor = theirs["rate_factor"] or 1.0
    ordered = match_parameters(saved, theirs["parameters"], model, optimizer, path)
    try:
        optimizer.load_state_dict(dict(scatter_optimizer_state(ordered, optimizer)))
        is_other = _load_schedule(updater, theirs["scheduler"])
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"{path} does not fit the optimizer or scheduler of this run: {error}. Build them as "
            "the run that wrote it did."
        ) from error
    _warn_unused(updater, built, new_rate=new_rate)
    return is_other


def change_rate(
    updaters: Mapping[str, Updater], rate: float | None, earlier: float | None
) -> float | None:
    """Makes `rate` the one that all are built on, unless an `earlier` resume has done so: a job
    that is started again and again does it once. Returns the last one that a resume has set.

    Raises:
        ConfigError: a schedule does not say what it is built on.
    """
    if rate is None:
        return earlier
    if rate == earlier:
        logger.info(
            "the learning rate became %r at an earlier resume, and goes on from there.", rate
        )
        return rate
    for name, updater in updaters.items():
        option = option_text("resume_learning_rate", rate)
        text = change_base_rate(updater.optimizer, updater.scheduler, rate, option=option)
        logger.info("%s%s", f"{name}: " if name else "", text)
    return rate


def _read(updater: Updater, model: nn.Module) -> dict[str, Any]:
    state = updater.optimizer.state_dict()
    check_optimizer_state(state, updater.optimizer)
    scheduler = updater.scheduler
    return {
        "optimizer": state,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "classes": _name_classes(updater),
        "parameters": name_parameters(model, updater.optimizer),
        "rate_factor": updater.rate_factor,
    }


def _load_schedule(updater: Updater, state: Any) -> bool:
    """Puts the scheduler into `state`, and says which of its own settings have no effect."""
    scheduler = updater.scheduler
    if scheduler is None:
        return False
    built = describe_schedule(scheduler)
    scheduler.load_state_dict(state)
    unused = [*list_unused(built, describe_schedule(scheduler), updater.rate_factor)]
    for text in unused:
        logger.warning("%s %s", text, _SET_LATER)
    compared = compare_functions(scheduler)
    if compared is not None:
        text, differ = compared
        logger.log(logging.WARNING if differ else logging.INFO, "%s", text)
    return bool(unused)


def _name_classes(updater: Updater) -> dict[str, str]:
    return {
        "optimizer": type(updater.optimizer).__name__,
        "scheduler": name_schedule(updater.scheduler),
    }


def _check_classes(updater: Updater, saved: Mapping[str, str], path: Path) -> None:
    none = type(None).__name__
    for part, name in _name_classes(updater).items():
        if saved[part] in (name, name.partition("(")[0]):
            continue
        before = f"with the {part} {saved[part]}" if saved[part] != none else f"without a {part}"
        raise SnapshotError(
            f"{path} was written {before}, and this run has "
            f"{name if name != none else 'none'}. Build it as the run that wrote it did."
        )


def _warn_unused(updater: Updater, built: list[dict[str, Any]], *, new_rate: float | None) -> None:
    """Says which settings that the optimizer was built with have no effect: it goes on with those
    of the snapshot, but for a `new_rate`.
    """
    for index, (old, new) in enumerate(zip(built, updater.optimizer.param_groups, strict=False)):
        of_group = f" (group {index})" if len(built) > 1 else ""
        before, after = (fixed_settings(group, updater.scheduler) for group in (old, new))
        for name, value in before.items():
            if name in RATES and new_rate is not None:
                continue
            factor = updater.rate_factor if name in RATES else 1.0
            if not is_kept(value, after.get(name, value), factor):
                way = _SET_LATER
                if name in RATES:
                    way = f"To change it, use {option_text('resume_learning_rate', value)}."
                logger.warning(
                    "the optimizer%s goes on with %s %r of the snapshot; %r has no effect. %s",
                    *(of_group, name, after[name], value, way),
                )


def _check_same_names(saved: Mapping[str, Any], own: Collection[str], path: Path) -> None:
    """Refuses a snapshot of other optimizers."""
    before = {""} if "param_groups" in saved else set(saved)
    if before != set(own):
        raise SnapshotError(
            f"{path} was written with {_list_names(before)}, and this run has "
            f"{_list_names(own)}. Build them, and name them, as the run that wrote it did."
        )


def _list_names(names: Collection[str]) -> str:
    return "one optimizer" if "" in names else f"the optimizers {', '.join(sorted(names))}"
