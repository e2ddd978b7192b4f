"""The micro-batches of an update, and what the loss of each weighs.

Letters: k micro-batches of an update, n items (tokens, where the trainer counts them) of all.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["Window"]


class Window:
    """What is known of the update under way.

    Attributes:
        size: k.
        taken: micro-batches that have begun.
        ends_epoch: it is the epoch's last.
        is_in_step: a micro-batch is trained on.
        outputs: what the model has answered, where somebody asks for it.
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self.size = self.taken = 0
        self.ends_epoch = self.is_in_step = False
        self.outputs: Any = None
        self._items: float | None = None
        self._rows: float = 1
        self._loss: Tensor | None = None

    def start(self, size: int, items: Any, *, ends_epoch: bool) -> None:
        """An update begins.

        Args:
            size: k; 0 where the data is at its end.
            items: n, or None where the trainer does not count them.
            ends_epoch: no update of this epoch follows.
        """
        self.size, self.taken, self.ends_epoch = size, 0, ends_epoch
        self._items = None if items is None else float(items)

    def start_batch(self) -> bool:
        """A micro-batch begins; returns whether it is the epoch's last."""
        self.taken += 1
        self.is_in_step, self._loss, self.outputs = True, None, None
        return self.ends_epoch and self.taken == self.size

    def note_loss(self, loss: Tensor, inputs: object, outputs: Any) -> None:
        """`compute_loss` has answered."""
        self._loss, self.outputs = loss, outputs
        if self._items is None:
            self._rows = count_rows(inputs)

    def weigh(self, loss: Tensor) -> tuple[Tensor, float]:
        """Returns the mean loss of the micro-batch and the items that it is of, so that sums over
        the update are exact.

        Args:
            loss: what goes through the backward pass, whose sum over the update is its loss.
        """
        own = self._loss
        if own is not None and own is not loss:  # a mean, which the trainer has divided by k
            return own, self._rows
        mean = loss if self.size == 1 else loss * self.size
        return mean, self._rows if self._items is None else self._items / self.size


def count_rows(inputs: object) -> int:
    """Returns the number of rows of a batch: of its first tensor, or of a list of examples."""
    values: Iterable[Any] = ()
    if isinstance(inputs, (dict, UserDict, Mapping)):  # the last of which is slow to ask
        values = inputs.values()
    elif isinstance(inputs, (list, tuple)):
        if not any(isinstance(each, Tensor) for each in inputs):
            return max(len(inputs), 1)
        values = inputs
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return int(value.shape[0])
    return 1
