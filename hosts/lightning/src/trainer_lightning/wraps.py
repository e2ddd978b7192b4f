"""Public methods of a trainer's parts, wrapped while a run is under way: where its callbacks are
not told enough.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.hosting import HostedRun

from .framework import is_a
from .logger import RunLogger

__all__ = ["listen", "measure_clipping", "read_answer", "watch_loss", "watch_saves", "wrapped"]


def listen(
    trainer: Any,
    module: Any,
    run: HostedRun,
    *,
    loss: Callable[[Tensor, Any], None],
    log: Callable[[Mapping[str, float]], None],
    saved: Callable[[str], None],
) -> contextlib.ExitStack:
    """Listens where Lightning's callbacks are not called, until the answer is closed."""
    precision, held = trainer.precision_plugin, contextlib.ExitStack()
    own = RunLogger(log, str(trainer.default_root_dir))
    trainer.loggers = [*trainer.loggers, own]
    held.callback(_drop_logger, trainer, own)
    held.enter_context(wrapped(module, "training_step", watch_loss(loss)))
    clipping = measure_clipping(precision, run.end_clipping)
    held.enter_context(wrapped(precision, "clip_grad_by_norm", clipping))
    if not is_a(trainer.strategy.checkpoint_io, "AsyncCheckpointIO"):
        held.enter_context(wrapped(trainer, "save_checkpoint", watch_saves(saved)))
    return held


def _drop_logger(trainer: Any, own: RunLogger) -> None:
    trainer.loggers = [each for each in trainer.loggers if each is not own]


@contextlib.contextmanager
def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces a method of one object while it is open.

    Args:
        make: the method as it was -> what is called instead.
    """
    own, before = vars(owner).get(name), getattr(owner, name)
    after = functools.wraps(before)(make(before))
    setattr(owner, name, after)
    try:
        yield
    finally:
        if vars(owner).get(name) is after:  # somebody else may have wrapped it since
            delattr(owner, name) if own is None else setattr(owner, name, own)


def read_answer(answer: Any) -> tuple[Tensor | None, Any]:
    """Returns the loss in what a step has answered, and what is beside it: `outputs` where that is
    all, else a dictionary.
    """
    if not isinstance(answer, Mapping):
        return (answer if isinstance(answer, Tensor) else None), None
    loss, others = answer.get("loss"), {k: v for k, v in answer.items() if k != "loss"}
    outputs = others["outputs"] if others.keys() == {"outputs"} else others
    return (loss if isinstance(loss, Tensor) else None), outputs


def watch_loss(take: Callable[[Tensor, Any], None]) -> Callable[[Any], Any]:
    """Returns what wraps `training_step`: `take` gets the loss, not divided and not scaled, and
    what the step has answered beside it.
    """

    def make(training_step: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            answer = training_step(*arguments, **named)
            loss, outputs = read_answer(answer)
            if loss is not None:
                take(loss, outputs)
            return answer

        return step

    return make


def measure_clipping(precision: Any, tell: Callable[[Tensor, float], None]) -> Callable[[Any], Any]:
    """Returns what wraps `clip_grad_by_norm` of a precision: `tell` gets the norm before, and the
    limit. Lightning computes that norm too, and drops it.
    """
    is_plain = type(precision).clip_grad_by_norm.__qualname__.startswith("Precision.")

    def make(clip: Callable[..., None]) -> Callable[..., None]:
        def clip_and_tell(optimizer: Any, clip_val: float) -> None:
            parameters = list(precision.main_params(optimizer))
            if is_plain:
                norm = torch.nn.utils.clip_grad_norm_(parameters, clip_val)
            else:
                grads = [each.grad for each in parameters if each.grad is not None]
                norm = torch.nn.utils.get_total_norm(grads)
                clip(optimizer, clip_val)
            tell(norm, float(clip_val))

        return clip_and_tell

    return make


def watch_saves(tell: Callable[[str], None]) -> Callable[[Any], Any]:
    """Returns what wraps the trainer's `save_checkpoint`: `tell` gets the path that was written."""

    def make(save: Callable[..., None]) -> Callable[..., None]:
        def save_and_tell(filepath: Any, *arguments: Any, **named: Any) -> None:
            save(filepath, *arguments, **named)
            tell(str(filepath))

        return save_and_tell

    return make
