"""What the callback's options may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from trainer_callback import OptionError, option_text

if TYPE_CHECKING:
    from .callback import GradientMonitorCallback

__all__ = ["PREFIX", "OnNonfinite", "check_options", "to_patterns"]

PREFIX: Final = "gradient_"

OnNonfinite: TypeAlias = Literal["ignore", "warn", "snapshot", "stop"]


def check_options(monitor: GradientMonitorCallback) -> None:
    """Refuses what cannot work.

    Raises:
        OptionError: it names the option and what was given.
    """
    interval = monitor.monitor_interval
    elsewhen = monitor.monitor_at_snapshots or monitor.monitor_at_epochs
    vanishing = monitor.vanish_threshold
    for option, holds, what in (
        ("monitor_interval", interval is not None or elsewhen, "given, since nothing else is due"),
        ("monitor_interval", interval is None or interval >= 1, "a whole number, at least 1"),
        ("monitor_depth", monitor.monitor_depth >= 1, "a whole number, at least 1"),
        ("monitor_norm_type", monitor.monitor_norm_type > 0, "above 0, or inf"),
        ("vanish_threshold", 0 <= vanishing < math.inf, "finite and at least 0"),
        ("explode_threshold", monitor.explode_threshold > 0, "above 0"),
        ("history", monitor.history >= 2, "a whole number, at least 2"),
    ):
        if not holds:
            raise OptionError(
                f"{type(monitor).__name__}: {option_text(option, prefix=PREFIX)} must be {what}, "
                f"got {getattr(monitor, option)!r}."
            )


def to_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Returns one pattern or several as several."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
