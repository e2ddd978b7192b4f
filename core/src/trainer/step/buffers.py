"""The buffers of a model, such as the running statistics of BatchNorm: a forward pass changes them,
and no optimizer can leave that out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["KeptBuffers"]


class KeptBuffers:
    """Copies of a model's buffers, to be put back. They cost its buffers' size in memory, and
    copying that once for each call of `keep`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._owners: list[tuple[dict[str, Tensor | None], str]] = []
        self._tensors: list[Tensor | None] = []
        self._copies: list[Tensor] = []
        self._is_due = False

    def keep(self) -> None:
        """Copies the buffers as they are now."""
        self._is_due = False
        self._owners = [
            (each._buffers, name) for each in self._model.modules() for name in each._buffers
        ]
        tensors = [owner[name] for owner, name in self._owners]
        present = [tensor for tensor in tensors if tensor is not None]
        with torch.no_grad():
            if [*map(id, tensors)] == [*map(id, self._tensors)]:
                if present:
                    torch._foreach_copy_(self._copies, present)
            else:
                self._copies = [tensor.clone() for tensor in present]
        self._tensors = tensors

    def restore_later(self) -> None:
        """Asks for `restore` at the turn's end: graphs of other optimizers hold the buffers."""
        self._is_due = True

    def end_turn(self) -> None:
        """Puts the buffers back where that was asked for."""
        if self._is_due:
            self.restore()

    def restore(self) -> None:
        """Puts the buffers back as `keep` has found them."""
        copies = iter(self._copies)
        with torch.no_grad():
            for (owner, name), tensor in zip(self._owners, self._tensors, strict=True):
                owner[name] = tensor
                if tensor is not None and not torch.equal(tensor, copy := next(copies)):
                    tensor.copy_(copy)
