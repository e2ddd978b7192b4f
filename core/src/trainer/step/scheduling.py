"""What steps the schedulers of a run: each update, each epoch, or a metric."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from trainer_callback import option_text
from trainer_callback.errors import closest

from ..config import ConfigError, TrainerConfig
from ..counters import Position
from ..processes.ranks import Ranks
from .schedules import follows_metric, needed_arguments, step_schedule

__all__ = ["Scheduling", "check_scheduling"]

logger: logging.Logger = logging.getLogger("trainer")


def check_scheduling(schedulers: Mapping[str, Any], config: TrainerConfig) -> None:
    """Looks whether the schedulers can be stepped as the options say.

    Raises:
        ConfigError: they cannot, or an option has no effect.
    """
    interval, monitor = config.scheduler_interval, config.scheduler_monitor
    for scheduler in schedulers.values():
        _check_step(scheduler, config)
    if monitor is not None and not any(map(follows_metric, schedulers.values())):
        kinds = ", ".join(type(each).__name__ for each in schedulers.values())
        raise ConfigError(
            f"{option_text('scheduler_monitor')} is {monitor!r}, and no scheduler follows a metric "
            f"(there is {kinds or 'none'}). It is for ReduceLROnPlateau; leave it out."
        )
    if interval == "epoch" and not schedulers:
        raise ConfigError(
            f"{option_text('scheduler_interval')} is 'epoch', and there is no scheduler. Pass "
            "scheduler=..., or leave it out."
        )


def _check_step(scheduler: Any, config: TrainerConfig) -> None:
    name, follows = type(scheduler).__name__, follows_metric(scheduler)
    if follows and config.scheduler_monitor is None:
        raise ConfigError(
            f"{name} waits for a metric, and none is named. Name the one that it "
            f"follows: {option_text('scheduler_monitor', 'val_loss')}."
        )
    if hasattr(scheduler, "step_with_optimizer") and (
        follows or config.scheduler_interval == "epoch"
    ):
        raise ConfigError(
            "a scheduler that accelerator.prepare has returned is stepped once for each process "
            f"and update; this one is to be stepped by {'a metric' if follows else 'epochs'}. "
            "Leave it out of prepare(), and hand it to the run as it is."
        )
    needed = [] if follows else needed_arguments(scheduler)
    if needed:
        raise ConfigError(
            f"{name}.step wants {', '.join(needed)}, and a scheduler is stepped without arguments. "
            "Derive a class from it whose step() counts itself."
        )


class Scheduling:
    """Steps the schedulers that no update steps. It keeps nothing that a snapshot would need."""

    def __init__(
        self, schedulers: Mapping[str, Any], config: TrainerConfig, position: Position, ranks: Ranks
    ) -> None:
        """Takes the schedulers of all optimizers by name."""
        self._position, self._ranks = position, ranks
        self._monitor = config.scheduler_monitor or ""
        self._by_epoch = config.scheduler_interval == "epoch"
        given = [*schedulers.values()]
        self._following = [each for each in given if follows_metric(each)]
        self._counting = [each for each in given if self._by_epoch and each not in self._following]

    @property
    def is_by_epoch(self) -> bool:
        """Whether there is a scheduler that waits for the end of an epoch."""
        waits = self._by_epoch or self._monitor.partition("/")[0] == "train_loss"
        return bool(self._counting) or (waits and bool(self._following))

    def start(self, known: Sequence[str] | None, *, validates: bool) -> None:
        """Looks at what the schedulers wait for, before the first step.

        Args:
            known: the names of the metrics that the run will have, as `View.metric_names`.
            validates: there is a validation.

        Raises:
            ConfigError: nothing will ever measure it.
        """
        if not self._following:
            return
        name = self._monitor
        if not validates and name.startswith("val_"):
            raise ConfigError(
                f"{option_text('scheduler_monitor')} is {name!r}, and there is no validation. Pass "
                f"val_loader, or use {option_text('scheduler_monitor', 'train_loss')}."
            )
        if known is not None and not any(fnmatchcase(name, each) for each in known):
            names = ", ".join(known)
            raise ConfigError(
                f"{option_text('scheduler_monitor')} is {name!r}, and this run will have no such "
                f"metric, but {names}.{closest(name, known)}"
            )
        for each in self._following:
            direction = {"min": "lower", "max": "higher"}.get(getattr(each, "mode", ""), "")
            when = "at the end of each epoch" if self._by_epoch else "after each validation"
            better = f" ({direction} is better)" if direction else ""
            logger.info("%s follows %s%s, %s.", type(each).__name__, name, better, when)

    def end_validation(self, metrics: Mapping[str, float]) -> None:
        """Steps what follows a metric behind a validation inside an epoch.

        Args:
            metrics: of that validation, the same in all processes.

        Raises:
            ConfigError: the metric is not among them.
        """
        name = self._monitor
        if not self._following or self._by_epoch or name.partition("/")[0] == "train_loss":
            return  # the training loss is known where the epoch ends
        if name not in metrics:
            way = option_text("scheduler_interval", "epoch")
            raise self._explain(metrics, f" For one that is known at an epoch's end, use {way}.")
        self._follow(metrics[name])

    def end_epoch(self) -> None:
        """Steps what waits for the end of an epoch, which has passed.

        Raises:
            ConfigError: nobody has logged the metric.
        """
        for each in self._counting:
            step_schedule(each, unit="epoch")
        if self._following:
            self._follow(self._ranks.on_main(self._read, "scheduler"))

    def _read(self) -> float:
        metrics = self._position.metrics
        if self._monitor not in metrics:
            raise self._explain(metrics)
        return metrics[self._monitor]

    def _explain(self, metrics: Mapping[str, float], more: str = "") -> ConfigError:
        names = ", ".join(sorted(metrics)) or "nothing"
        return ConfigError(
            f"{option_text('scheduler_monitor')} is {self._monitor!r}, and there is no such metric "
            f"at update {self._position.step}, but {names}.{closest(self._monitor, metrics)}{more}"
        )

    def _follow(self, value: float) -> None:
        for each in self._following:
            step_schedule(each, value, unit="validation")
