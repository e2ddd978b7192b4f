"""What a loss function may answer: a loss, alone or with the outputs of the model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..data.batches import parts_of
from .losses import LossError, check_count, check_form, check_loss

__all__ = ["Loss", "check_total", "read_answer", "read_outputs"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss that is a sum, with the number of items that it sums over. The gradient of an update
    is then the sum of its totals, over all its micro-batches and processes, divided by the sum of
    its counts.

    Attributes:
        total: 0-dim, the sum of the items' losses (`reduction="sum"`, for a mean over no items is
            NaN, also times 0).
        count: items or tokens, at least 0; a number, or a 0-dim tensor, which stays on its device
            and is read in each update.
        outputs: of the model, for metrics, and for the hooks that ask for them.
    """

    total: Tensor
    count: int | float | Tensor
    outputs: Any = None

    @property
    def mean(self) -> Tensor:
        """Total / max(count, 1), 0-dim, detached."""
        count = self.count
        most = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        return self.total.detach() / most


def read_answer(answer: Any) -> tuple[Tensor | Loss, Any]:
    """Returns the loss that `answer` is, or has, and the outputs beside it or None. `.loss` is
    looked for before the keys of a mapping, for some objects have both.

    Raises:
        LossError: there is no loss in it.
    """
    loss, outputs = answer, None
    if isinstance(answer, Tensor):
        pass
    elif isinstance(answer, Loss):
        loss, outputs = answer, answer.outputs
    elif getattr(answer, "loss", None) is not None:
        loss, outputs = answer.loss, answer
    elif isinstance(answer, Mapping) and "loss" in answer:
        loss = answer["loss"]
        outputs = {name: value for name, value in answer.items() if name != "loss"} or None
    elif isinstance(answer, tuple) and len(answer) == 2:
        loss, outputs = answer
    if isinstance(loss, Loss):
        return Loss(loss.total, loss.count), outputs
    return check_form(loss), outputs


def read_outputs(answer: Any) -> Any:
    """Returns what `answer` has beside a loss, which is not looked at, or None: without targets
    there may be none. An object with `.loss` becomes a mapping of the rest of it.

    Raises:
        LossError: there is no place for a loss in it.
    """
    if isinstance(answer, Tensor):
        check_form(answer)
        return None
    if isinstance(answer, Loss):
        return answer.outputs
    if isinstance(answer, tuple) and len(answer) == 2:
        return answer[1]
    parts = answer if isinstance(answer, Mapping) else parts_of(answer)
    if parts is None or not (isinstance(answer, Mapping) or hasattr(answer, "loss")):
        check_form(answer)
    rest = {name: value for name, value in (parts or {}).items() if name != "loss"}
    return rest if any(value is not None for value in rest.values()) else None


def check_total(loss: Loss) -> None:
    """Says what is wrong with a sum, or its count.

    Raises:
        LossError: the total cannot be trained on, or the count is no number of items.
    """
    check_loss(loss.total)
    if loss.total.grad_fn is None:
        raise LossError(
            "the total of a Loss depends on no parameter. Where there are no items, multiply the "
            "model's output by 0 and sum it up: Loss((output * 0).sum(), 0)."
        )
    check_count(loss.count)
