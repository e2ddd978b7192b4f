"""What a session asks of a trainer: all of it of `attach`, and of `Plugins` what events tell."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Host"]


class Host(Protocol):
    """A `transformers.Trainer`, or what its events have told of one; the names are its own.

    Attributes:
        accelerator: what unscales, synchronizes and steps.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any
    state: Any
    control: Any
    accelerator: Any
