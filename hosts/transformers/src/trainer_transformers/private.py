"""Everything of transformers that this package uses and that is not public."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .wrapping import WrappedMethods

__all__ = ["put_best_metric", "reload_weights"]


def put_best_metric(methods: WrappedMethods, trainer: Any, wants_save: Callable[[], bool]) -> None:
    """Lets `save_strategy="best"`, which decides behind each validation anew, save a checkpoint
    that plugins want, too.
    """

    def make(original: Callable[..., bool]) -> Callable[..., bool]:
        def determine(*values: Any, **named: Any) -> bool:
            return original(*values, **named) or wants_save()

        return determine

    methods.put(trainer, "_determine_best_metric", make)


def reload_weights(trainer: Any, checkpoint: Path) -> None:
    """Loads the weights of `checkpoint` into the model once more, as `train` has done."""
    trainer._load_from_checkpoint(str(checkpoint))
