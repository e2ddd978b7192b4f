"""What callbacks answer, and what they are handed, as records. Knows no torch at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import show

if TYPE_CHECKING:
    import torch

__all__ = ["CallbackInfo", "GradientStats", "LogRecord", "StopRequest"]


@dataclass(frozen=True)
class StopRequest:
    """An answer to `should_stop_training` that says why.

    Attributes:
        reason: one word for programs, such as `patience`; one line, not empty.
        detail: one sentence for people.

    Raises:
        TypeError: one of them is no str.
        ValueError: `reason` is empty, or of several lines.
    """

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        """Checks both, for an end that is recorded has to say why."""
        for name in ("reason", "detail"):
            value: object = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(
                    f"StopRequest: {name} must be a str, got {show(value)}. Use "
                    'StopRequest("patience", "one sentence for people").'
                )
        if not self.reason.strip() or len(self.reason.splitlines()) > 1:
            raise ValueError(
                f"StopRequest: reason must be one line and not empty, got {show(self.reason)}. "
                'Use one word, such as "patience", and put the rest into detail.'
            )


@dataclass(frozen=True, eq=False)
class GradientStats:
    """Statistics of the gradients of one update, still on their device.

    Letters: R rows (groups of parameters, in forward order), C columns.

    Attributes:
        rows: the R group names, in the order of `model.named_parameters()`.
        columns: the C names of what was measured: `norm, rms, max_abs, mean, std, zero_fraction,
            nonfinite`.
        values: tensor (R, C) on the device of the gradients, float32 (float64 where a gradient
            is). No copy to the host was made.
        total_norm: 0-dim tensor as wide, the 2-norm over *all* gradients (every parameter of the
            model, or of the optimizer at hand where there are several; filters or not).
        disconnected: names of parameters that require a gradient and got none.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: torch.Tensor
    total_norm: torch.Tensor
    disconnected: tuple[str, ...]


@dataclass(frozen=True)
class CallbackInfo:
    """A callback of the run, as `trainer.callbacks` gives it.

    Attributes:
        name: the entry point's, or the class name of one that is not installed.
        callback: the object.
        distribution, version: where it came from; empty for code that is not installed.
        options: its constructor's parameters that are plain attributes of it, as they are.
    """

    name: str
    callback: object
    distribution: str
    version: str
    options: Mapping[str, object]


@dataclass(frozen=True)
class LogRecord:
    """One log event, as `trainer.logged` gives it.

    Attributes:
        event: its number, 0-based, over all resumes.
        time: seconds since 1970 at which it was logged, to the millisecond; None where an older
            version wrote it.
        step: the updates done then.
        epoch: the epoch then, 0-based.
        metrics: name -> value; NaN and infinities are floats too. Empty for a text.
        texts: name -> text. Empty for metrics.
    """

    event: int
    time: float | None
    step: int
    epoch: int
    metrics: Mapping[str, float]
    texts: Mapping[str, str]
