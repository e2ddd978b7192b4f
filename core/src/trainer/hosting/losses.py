"""The losses of a run that another trainer drives, read when somebody asks for their means."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..processes.ranks import ALONE, Ranks
from ..step.loss_meter import LossMeter, read_scalars

__all__ = ["HostedLosses"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST = 256
"""Updates whose losses wait to be read."""


class HostedLosses(LossMeter):
    """Takes a loss where it is computed. What is on a device is copied from there with others: an
    update neither waits for its device, nor for other processes. A loss that is not finite is left
    out of the means, with the rest of its update; the first one is told of.
    """

    def __init__(self, ranks: Ranks = ALONE, *, host: str) -> None:
        """Has none yet; `host` is how messages call the host."""
        self._host, self._is_finite = host, True
        super().__init__(ranks)

    def reset(self) -> None:
        super().reset()
        self._total, self._count = 0.0, 0.0
        self._unread: list[tuple[Tensor, float]] = []
        self._updates: list[tuple[int, float, float, list[tuple[Tensor, float]]]] = []

    def add_batch(self, loss: Tensor, items: float) -> None:
        """Takes the mean loss of a micro-batch, 0-dim, and the items that it is of."""
        self._count += items
        if loss.is_cpu:
            self._total += loss.item() * items
        else:  # a copy: a graph that is replayed overwrites what it has answered before
            self._unread.append((loss.detach().clone(), items))

    def end_update(self, step: int) -> None:
        """Update `step` is of the micro-batches since the last call; called in all processes."""
        total, count, unread = self._total, self._count, self._unread
        self._total, self._count = 0.0, 0.0
        if not unread and self._ranks.is_alone and not self._updates:
            self._take(step, total, count)
            return
        self._updates.append((step, total, count, unread))
        self._unread = []
        if len(self._updates) >= _MOST:
            self._settle()

    def _settle(self) -> None:
        """Reads and adds up what waits. All processes have to call it at the same place."""
        updates, self._updates = self._updates, []
        if not updates:
            return
        read = iter(read_scalars([loss for *_, unread in updates for loss, _ in unread]))
        sums: list[float] = []
        for _, total, count, unread in updates:
            sums += [total + sum(next(read) * items for _, items in unread), count]
        if not self._ranks.is_alone:
            sums = self._ranks.total(sums, "losses")
        for (step, *_), total, count in zip(updates, sums[::2], sums[1::2], strict=True):
            self._take(step, total, count)

    def _take(self, step: int, total: float, count: float) -> None:
        if math.isfinite(total):
            self._sums[""].add(total, count)
        elif self._is_finite:
            self._is_finite = False
            logger.warning(
                "the loss of update %d is not finite, and is left out of the means that "
                "plugins see; %s goes on.",
                *(step, self._host),
            )

    def take_interval(self) -> dict[str, float]:
        self._settle()
        return super().take_interval()

    def epoch_means(self) -> dict[str, float]:
        self._settle()
        return super().epoch_means()

    def start_epoch(self) -> None:
        self._settle()
        super().start_epoch()

    def state(self) -> dict[str, Any]:
        self._settle()
        return super().state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.reset()
        super().load_state(state)
