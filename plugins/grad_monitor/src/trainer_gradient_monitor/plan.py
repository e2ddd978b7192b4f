"""When a monitor measures, as its options and the run say."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainer_callback import TrainerProtocol, option_text

from .options import PREFIX

if TYPE_CHECKING:
    from .callback import GradientMonitorCallback

__all__ = ["describe_plan", "is_due", "warn_of_idle_options"]

logger: logging.Logger = logging.getLogger("trainer.gradient_monitor")


def is_due(monitor: GradientMonitorCallback, trainer: TrainerProtocol) -> bool:
    """Whether the update under way, `trainer.step` + 1, is to be measured."""
    interval = monitor.monitor_interval
    return (
        (monitor.monitor_at_snapshots and trainer.snapshot_due)
        or (interval is not None and (trainer.step + 1) % interval == 0)
        or (monitor.monitor_at_epochs and trainer.last_update_of_epoch)
    )


def describe_plan(monitor: GradientMonitorCallback) -> str:
    """Returns when it measures, for people."""
    moments = []
    if monitor.monitor_at_snapshots:
        moments.append("before each snapshot")
    if monitor.monitor_interval is not None:
        moments.append(f"every {monitor.monitor_interval} updates")
    if monitor.monitor_at_epochs:
        moments.append("at the end of each epoch")
    return " and ".join(moments)


def warn_of_idle_options(monitor: GradientMonitorCallback, trainer: TrainerProtocol) -> None:
    """Says which option has no effect in this run, where that can be known."""
    steps, every = trainer.max_steps, monitor.monitor_interval
    if every is not None and steps is not None and every > steps:
        text = "monitor_interval %d is beyond the %d updates of this run."
        logger.warning(text, every, steps)
    elsewhen = every is not None or monitor.monitor_at_epochs
    if monitor.monitor_at_snapshots and trainer.output_dir is None and not elsewhen:
        logger.warning(
            "monitor_at_snapshots has no effect without an output directory. Use %s.",
            option_text("monitor_interval", 100, PREFIX),
        )
