"""The loss of a batch: what may be one, and what a model answers as one."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer_callback import RunError, UsageError
from trainer_callback.errors import show

from .parts import with_article

__all__ = [
    "LossError",
    "NonFiniteError",
    "apply_model",
    "call_model",
    "check_count",
    "check_form",
    "check_loss",
    "default_loss",
]

_OWN: Final = (
    "Pass loss_fn=lambda model, batch: ... to Trainer, such as "
    "torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
)


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is NaN or infinite."""


class LossError(UsageError, TypeError):
    """What should be the loss of a batch is none."""


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Returns the model's own output as the loss, or its `.loss`.

    Args:
        batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        LossError: the model does not take such a batch, or returned something else.
    """
    output = call_model(model, batch)
    return output if isinstance(output, Tensor) else output.loss


def call_model(model: nn.Module, batch: Any) -> Any:
    """Returns what the model makes of a batch: a loss, or an object with one as `.loss`.

    Args:
        batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        LossError: the model does not take such a batch, or returned something else.
    """
    output = apply_model(model, batch)
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise LossError(
            f"the model returned {with_article(type(output))}{shape}, which is no loss. "
            "Return a 0-dim tensor or an object with .loss, or pass loss_fn=... to Trainer."
        )
    return output


def apply_model(model: nn.Module, batch: Any) -> Any:
    """Returns what the model makes of a batch, which is its arguments: a tensor, a tuple, or a dict
    of those by name.

    Raises:
        LossError: the model does not take such a batch.
    """
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        named = dict(batch)
    elif isinstance(batch, (tuple, list)):
        arguments = [*batch]
    else:
        arguments = [batch]
    try:
        return model(*arguments, **named)
    except TypeError as error:
        _check_arguments(model, arguments, named, error)
        raise


def check_loss(loss: object) -> None:
    """Says what is wrong with something that cannot be trained on.

    Raises:
        LossError: it is no 0-dim real tensor, or depends on no parameter.
    """
    if (
        isinstance(loss, Tensor)
        and not loss.ndim
        and loss.requires_grad
        and loss.is_floating_point()
    ):
        return
    if not check_form(loss).requires_grad:
        raise LossError(
            "the loss of a batch depends on no parameter that requires a gradient. Compute it "
            "without detach(), item(), torch.no_grad() or numpy on the way from the model."
        )


def check_form(loss: object) -> Tensor:
    """Returns a loss that is a 0-dim real tensor; in a validation it needs no gradient.

    Raises:
        LossError: it is something else.
    """
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss of a batch is a 0-dim tensor, and not {with_article(type(loss))}. Return "
            'from loss_fn a loss, (loss, outputs), {"loss": loss, ...}, an object with .loss, or '
            "trainer.Loss(total, count); hand run.backward a loss, or a Loss."
        )
    if loss.ndim:
        raise LossError(
            f"the loss of a batch is a 0-dim tensor, and not one of shape {tuple(loss.shape)}. "
            "Take its .mean(), or .squeeze() where it has one element."
        )
    if loss.is_complex():
        raise LossError(f"the loss of a batch is a real number, and not {loss.dtype}.")
    return loss


def check_count(count: object) -> None:
    """Refuses what is no number of items. A tensor is not read here, which would wait for its
    device: what it was is looked at when it has been read.

    Raises:
        LossError: it is none.
    """
    if isinstance(count, Tensor):
        is_number = count.dtype != torch.bool and not count.is_complex()
        is_count = is_number and not count.ndim and not count.requires_grad
    else:
        is_number = isinstance(count, (float, numbers.Integral)) and not isinstance(count, bool)
        is_count = is_number and 0 <= count < 2**63  # type: ignore[operator]
    if is_count:
        return
    raise LossError(
        f"the count of a Loss is a number of at least 0 or a 0-dim tensor, and not {show(count)}. "
        "Write Loss(total, count=mask.sum())."
    )


def _check_arguments(
    model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], error: TypeError
) -> None:
    """Raises a LossError if it was the batch that did not fit the model's `forward`."""
    for wrapper in ("_orig_mod", "module"):  # of a compiled one, and a parallel one inside
        model = getattr(model, wrapper, model)
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except TypeError as reason:
        what = f"keys {', '.join(map(str, named))}" if named else f"{len(arguments)} items"
        raise LossError(
            f"without loss_fn a batch is the arguments of the model, and {type(model).__name__} "
            f"does not take a batch of {what} ({reason}). {_OWN}"
        ) from error
