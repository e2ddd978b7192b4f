"""What a run of `train-lm` measures: the loss per token, and in a validation how often the
likeliest token is the right one, and the perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer import Loss

__all__ = ["METRICS", "Perplexity", "loss_of", "perplexity_inputs"]


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """Returns the loss of a batch of `GPT` in nats, with its number of tokens and, as outputs, its
    `TokenSums`: the logits are not kept. Every token counts, so that nothing waits for a device to
    count them.
    """
    sums = model(**batch, summed=True)
    return Loss(sums.total, batch["labels"].numel(), sums)


class Perplexity:
    """The exponential of the mean loss over all tokens; a metric of `Trainer`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts at nothing."""
        self._total: Any = 0.0
        self._count = 0

    def update(self, total: Tensor, count: int) -> None:
        """Adds a batch: nats, 0-dim, and tokens; nothing waits for its device."""
        wide = torch.float32 if total.device.type == "mps" else torch.float64
        self._total = self._total + total.detach().to(wide)
        self._count = self._count + count

    def merge(self, others: Sequence[Perplexity]) -> None:
        """Adds those of the other processes."""
        for other in others:
            self._total, self._count = self._total + other._total, self._count + other._count

    def compute(self) -> float:
        """Returns it; infinite where it is larger than a float."""
        try:
            return math.exp(float(self._total) / float(self._count))
        except OverflowError:
            return math.inf

    def __getstate__(self) -> dict[str, float]:
        """Returns numbers, for another process may not reach the device."""
        return {"_total": float(self._total), "_count": float(self._count)}


def perplexity_inputs(outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Returns what `Perplexity.update` takes."""
    return outputs.total, batch["labels"].numel()


METRICS: Final[Mapping[str, Any]] = {
    "accuracy": lambda outputs, batch: (outputs.hits, batch["labels"].numel()),
    "perplexity": Perplexity(),
}
