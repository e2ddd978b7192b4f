"""What goes with an exception from a loss function: the batch that it was called with, and what is
usually the cause.

Letters: B items of a batch, C classes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy
import torch

from trainer_callback import RunError, UsageError, option_text
from trainer_callback.errors import text_of

from ..data.batches import parts_of
from .parts import with_article

__all__ = ["add_note", "advise", "advise_backward", "describe_batch"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST_PARTS: Final = 6
_LONG: Final = "Class numbers are integers: convert them with .long()."
_FLOAT: Final = (
    "Numbers from numpy and pandas are float64, and a model computes in float32: convert inputs "
    "with .float()."
)
_DEVICE: Final = (
    "The batch is on the device of the model: make other tensors there too, with "
    "device=batch[0].device."
)
_CAUSES: Final[Mapping[str, str]] = {
    "target dtype to be Long": _LONG,
    "scalar type Long": _LONG,
    "must have the same dtype": _FLOAT,
    "shapes cannot be multiplied": (
        "The last dimension of the inputs and the in_features of the layer differ."
    ),
    "is out of bounds": (
        "Class numbers go from 0 to C - 1, where C is the number of outputs of the model."
    ),
    "more than 1 value per channel": (
        "Batch normalisation needs two items: use DataLoader(..., drop_last=True)."
    ),
    "not numpy.ndarray": (
        "Make tensors of arrays: torch.from_numpy(array).float(), or a DataLoader, which does."
    ),
    "same device": _DEVICE,
    "graph a second time": (
        "Leave loss.backward() to the run: loss_fn returns the loss, and run.backward(loss) is "
        "called once for it."
    ),
}
"""A piece of a message of torch -> what a beginner can do."""

_NO_COMPILER: Final = ("No working C++ compiler", "Failed to find C compiler")


def advise(error: Exception, loss_fn: Callable[..., Any] | None, batch: Any) -> Exception:
    """Returns `error`, raised by a loss function, with a note on its batch. One of ours says itself
    what is wrong.
    """
    if isinstance(error, (UsageError, RunError)):
        return error
    if any(piece in text_of(error) for piece in _NO_COMPILER):
        refusal = UsageError(
            f"{option_text('compile')}: torch compiles with a C++ compiler, and finds none. "
            "Install one, such as g++, or do without."
        )
        refusal.__cause__ = error
        return refusal
    order = "" if loss_fn is None else _describe_order(loss_fn)
    add_note(error, f"The batch is {describe_batch(batch)}. {order or _find_cause(error)}".strip())
    return error


def advise_backward(error: BaseException) -> BaseException:
    """Returns `error`, raised by a backward pass, with a note on its cause where one is known."""
    cause = _find_cause(error)
    if cause:
        add_note(error, cause)
    return error


def _find_cause(error: BaseException) -> str:
    text = text_of(error)
    return next((way for piece, way in _CAUSES.items() if piece in text), "")


def add_note(error: BaseException, text: str) -> None:
    """Puts a sentence behind an exception, or into the log where Python has no notes."""
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    else:
        logger.error("%s", text)


def describe_batch(value: Any) -> str:
    """Returns kind, dtypes and shapes of a batch in words."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, numpy.ndarray):
        return f"a numpy array {value.dtype} {value.shape}"
    parts = value if isinstance(value, Mapping) else parts_of(value)
    if parts is not None:
        found = [f"{name!r}: {describe_batch(part)}" for name, part in parts.items()]
    elif isinstance(value, (list, tuple)):
        found = [describe_batch(part) for part in value]
    else:
        return with_article(type(value))
    more = ["..."] if len(found) > _MOST_PARTS else []
    return f"{with_article(type(value))} of {', '.join([*found[:_MOST_PARTS], *more]) or 'nothing'}"


def _describe_order(loss_fn: Callable[..., Any]) -> str:
    """Says of a loss function whose parameters are named as if it were called with others that it
    is not.
    """
    try:
        names = [*inspect.signature(loss_fn).parameters][:2]
    except (TypeError, ValueError):  # it has no signature
        return ""
    words = ("output", "pred", "logit", "input", "target", "label", "batch", "y_hat", "y_pred")
    if not names or not names[0].lower().startswith(words):
        return ""
    return (
        f"loss_fn is called with (model, batch), and its parameters are ({', '.join(names)}). "
        "Write a function of both, such as loss_fn=lambda model, batch: "
        "torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
    )
