"""The tiny training on which trainers are compared, and a loader that times them.

64 -> 64 -> 1, batches of 32, AdamW: small enough that a trainer shows beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

Batch = tuple[Tensor, Tensor]

UPDATES = 140
CHUNK = 20
"""Updates that are timed at once, about 8 ms: less than the machine takes to change its speed."""

LEARNING_RATE = 1e-3

torch.manual_seed(0)
BATCHES: list[Batch] = [(torch.randn(32, 64), torch.randn(32, 1)) for _ in range(UPDATES)]


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return mse_loss(model(batch[0]), batch[1])


def train_by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]
) -> None:
    """The loop that every trainer is measured against."""
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class TimingLoader:
    """Gives a trainer its batches and, before each chunk of them, trains a model of its own by hand
    on the same ones.

    So each chunk of the trainer has one of the hand-written loop beside it, a few milliseconds
    away; the set-up, the first and the last chunk do not count. Both models see the same batches
    and must end with the same weights.

    Attributes:
        pairs: seconds per update of a chunk, by hand and by the trainer.
        set_up: seconds until the trainer asked for the first batch.
    """

    def __init__(
        self,
        build: Callable[[], tuple[nn.Module, torch.optim.Optimizer]] = build,
        updates: int = UPDATES,
        chunk: int = CHUNK,
    ) -> None:
        self.model, self._optimizer = build()
        self._updates, self._chunk = updates, chunk
        self.pairs: list[tuple[float, float]] = []
        self.set_up = 0.0
        self._made = time.perf_counter()

    def __len__(self) -> int:
        return self._updates

    def set_epoch(self, epoch: int) -> None:
        """Says that the order depends on nothing else, as a list of batches does."""

    def __iter__(self) -> Iterator[Batch]:
        clock, size = time.perf_counter, self._chunk
        by_hand = begun = 0.0
        self.set_up = clock() - self._made
        for start in range(0, self._updates, size):
            arrived = clock()
            if start > size:
                self.pairs.append((by_hand / size, (arrived - begun) / size))
            chunk = BATCHES[start : start + size]
            before = clock()
            train_by_hand(self.model, self._optimizer, chunk)
            by_hand = (begun := clock()) - before
            yield from chunk
