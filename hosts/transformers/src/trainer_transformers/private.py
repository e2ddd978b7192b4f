"""Everything of transformers and accelerate that this package uses and that is not public."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState

from .wrapping import WrappedMethods

__all__ = ["kept_accelerator", "put_best_metric", "reload_weights"]


@contextlib.contextmanager
def kept_accelerator() -> Iterator[None]:
    """Keeps the state that all accelerators of the process share, which `TrainingArguments` drops
    when they are made.
    """
    shared = [each._shared_state for each in (AcceleratorState, PartialState)]
    before = [dict(each) for each in shared]
    try:
        yield
    finally:
        for state, kept in zip(shared, before, strict=True):
            if kept:
                state.clear()
                state.update(kept)


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
