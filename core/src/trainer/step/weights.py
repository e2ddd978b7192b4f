"""What turns sums of losses into the gradient of their mean: the numbers of items in the window of
an update, added up over the processes.

Letters: W processes, N items of an update, all processes together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..processes.ranks import Ranks
from .answers import Loss
from .gradients import Gradients
from .losses import check_count

__all__ = ["Weights"]


class Weights:
    """The counts of one optimizer's window. Where each batch is an update, N is known before its
    backward pass, and its loss is divided by it. Else the loss is divided by 2^k, which leaves the
    bits alone and is near the N of the update before, so that fp16 does not overflow; the rest is
    done once, when the window ends.

    All processes average their gradients, so each loss counts W-fold.

    Attributes:
        on_device: counts are added up as tensors, so that nothing waits for them.
        expected: about N, the same in all processes.
        known: N of the window that has ended; 0 where it is on the device.
    """

    def __init__(self, ranks: Ranks, *, batches: int) -> None:
        """Starts without a window.

        Args:
            batches: of a full window.
        """
        self._ranks, self._batches = ranks, batches
        self.reset()

    def reset(self) -> None:
        """A run begins."""
        self.on_device: bool = False
        self.expected: float = 1.0
        self.known: float = 0.0
        self._count: float | Tensor | None = None
        self._scale = 1.0

    @property
    def is_open(self) -> bool:
        """Whether the window has a batch."""
        return self._count is not None

    def divide(self, loss: Loss) -> tuple[Tensor, float | Tensor]:
        """Takes a batch into the window; returns what its backward pass begins with, 0-dim, and its
        count.
        """
        count = self._read(loss)
        if self._batches == 1:
            self._count = count
            return wide(loss.total) * self._share(1.0), count
        if self._count is None:
            self._scale = 2.0 ** round(math.log2(max(self.expected, 1.0)))
            self._count = count
        else:
            self._count = self._count + count
        return wide(loss.total) / self._scale, count

    def finish(self, gradients: Gradients) -> None:
        """The window ends: makes its gradients those of the mean, where they are not yet."""
        if self._batches > 1:
            gradients.multiply(self._share(self._scale))
        self._count = None

    def drop(self) -> None:
        """Forgets the window."""
        self._count = None

    def _read(self, loss: Loss) -> float | Tensor:
        """Returns the count in the form that all processes have agreed on.

        Raises:
            LossError: a tensor, which is read here, is no number of items.
        """
        count = loss.count
        if not self.on_device:
            count = float(count)
            check_count(count)
            return count
        with torch.no_grad():
            device = loss.total.device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            return torch.as_tensor(count, device=device).detach().to(dtype)

    def _share(self, scale: float) -> float | Tensor:
        """Returns scale * W / N; N is 1 where there are no items, and the update is skipped."""
        ranks, own = self._ranks, self._count
        assert own is not None
        if isinstance(own, Tensor):
            items = ranks.add_up(own)
            return scale * ranks.world_size / torch.where(items > 0, items, 1.0)
        (self.known,) = ranks.total([own], "items of an update")
        if self.known:
            self.expected = self.known
        return scale * ranks.world_size / (self.known or 1.0)


def wide(total: Tensor) -> Tensor:
    """Returns a sum in float32 at least."""
    return total.float() if total.dtype in (torch.float16, torch.bfloat16) else total
