"""The settings of a run for trackers: one flat mapping of plain values. Reads everything, keeps
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from torch import Tensor

from trainer_callback.errors import show

from ..config import ConfigError
from ..snapshots.facts import describe_callback, describe_options
from ..step.schedules import describe_schedule, name_schedule
from ..step.update import Updater
from ..view.view import View

__all__ = ["check_hyperparameters", "collect_hyperparameters"]

_SECRET: Final = ("password", "secret", "token", "api_key", "credentials")
"""How names of options end that are nobody's business."""


def collect_hyperparameters(
    updaters: Mapping[str, Updater], given: Mapping[str, object], view: View
) -> dict[str, object]:
    """Returns `TrainerProtocol.hyperparameters`; the values are None, bool, int, float or str.

    Args:
        updaters: name of the optimizer -> its step; "" is one without a name.
        given: more of them, which give way to the run's own of the same name.
    """
    found: dict[str, object] = dict(describe_options(view.config))
    found["world_size"] = view.world_size
    for name, updater in updaters.items():
        of = f"/{name}" if name else ""
        found.update(_describe_optimizer(f"optimizer{of}", updater.optimizer))
        if updater.scheduler is not None:
            found.update(_describe_scheduler(f"scheduler{of}", updater.scheduler))
    sizes = [(each.numel(), each.requires_grad) for each in view.model.parameters()]
    found["parameters"] = sum(size for size, _ in sizes)
    found["trained_parameters"] = sum(size for size, is_trained in sizes if is_trained)
    for plugin in view.manager.plugins:
        for name, value in describe_callback(plugin)["options"].items():
            found[f"{plugin.name}.{name}"] = value
    named = {**given, **found}
    return {name: _to_plain(named[name]) for name in named if not _is_secret(name)}


def check_hyperparameters(given: object) -> dict[str, object]:
    """Returns the hyperparameters that somebody gives beside the run's own, as plain values.

    Raises:
        ConfigError: it is no mapping of names to values that a tracker can show.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"hyperparameters must be a mapping of names to values, got {show(given)}. Write "
            '{"dropout": 0.1}.'
        )
    try:
        return {name: _to_plain(value) for name, value in given.items()}
    except TypeError as error:
        raise ConfigError(
            f"hyperparameters: {error} Give numbers, texts, truth values, None, or lists of these."
        ) from error


def _describe_optimizer(prefix: str, optimizer: Any) -> Iterator[tuple[str, object]]:
    """Yields the class, and the settings of the first group; of others, those that differ. The
    learning rate is the one that a schedule is built on.
    """
    yield prefix, type(optimizer).__name__
    groups = [
        {name: value for name, value in group.items() if name not in ("params", "param_names")}
        for group in optimizer.param_groups
    ]
    for number, group in enumerate(groups):
        group["lr"] = group.pop("initial_lr", group.get("lr"))
        of = f".group{number}" if number else ""
        for name, value in group.items():
            if _is_shown(value) and not (number and repr(groups[0].get(name)) == repr(value)):
                yield f"{prefix}{of}.{name}", value


def _describe_scheduler(prefix: str, scheduler: Any) -> Iterator[tuple[str, object]]:
    yield prefix, name_schedule(scheduler)
    for number, (kind, settings) in enumerate(describe_schedule(scheduler)):
        of = f".{kind}{number}" if number else ""
        for name, value in settings.items():
            yield f"{prefix}{of}.{name}", value


def _is_shown(value: object) -> bool:
    try:
        _to_plain(value)
    except TypeError:
        return False
    return True


def _to_plain(value: object) -> object:
    """Returns None, bool, int, float or str: of a list its text.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return _to_plain(value.item())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return str([_to_plain(each) for each in value])
    raise TypeError(f"{show(value)} is no value that a tracker can show.")


def _is_secret(name: str) -> bool:
    return name.lower().endswith(_SECRET)
