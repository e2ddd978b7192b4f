"""Moments of the loop -> seconds of each update, split into work and waiting for data.

Knows neither trainer nor torch: moments come from a clock that a test can set.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Stopwatch", "Update", "percentile"]


@dataclass
class Update:
    """What one update took.

    Attributes:
        count: tokens or items.
        work: seconds from the start of a batch to its end, summed over its batches.
        wait: seconds in which the next batch was fetched and moved to the device.
    """

    count: int = 0
    work: float = 0.0
    wait: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.work + self.wait

    @classmethod
    def sum(cls, updates: Iterable[Update]) -> Update:
        """Returns what `updates` took together."""
        total = cls()
        for update in updates:
            total.count += update.count
            total.work += update.work
            total.wait += update.wait
        return total


class Stopwatch:
    """Times updates. The first one, which warms up, is forgotten as soon as there is another.

    What happens between updates and is no waiting for data is left out: a gap counts from
    `start_gap` to the next batch, and not at all after `drop_gap`.

    Attributes:
        recent: the last updates, at most `window`.
        total: the sum of all.
    """

    def __init__(self, window: int, clock: Callable[[], float] | None = None) -> None:
        self.recent: deque[Update] = deque(maxlen=window)
        self.total: Update = Update()
        self._clock = clock or time.perf_counter
        self._updates = 0
        self._gap: float | None = None
        self._batch: float | None = None
        self._count = 0
        self._update = Update()

    def start_gap(self) -> None:
        """From now on the loop waits for a batch, whether the one before has ended or not."""
        self._gap, self._batch = self._clock(), None

    def restart_gap(self) -> None:
        """As `start_gap`, unless the gap was dropped."""
        if self._gap is not None:
            self._gap = self._clock()

    def drop_gap(self) -> None:
        """Something else stands between here and the next batch."""
        self._gap = None

    def start_batch(self, count: int) -> None:
        """A batch of `count` tokens or items is there. Of one before it that did not end the time
        counts and the items do not.
        """
        self.pause()
        now = self._clock()
        if self._gap is not None:
            self._update.wait += now - self._gap
        self._gap, self._batch, self._count = None, now, count

    def pause(self) -> None:
        """Something else than training begins, inside a batch."""
        if self._batch is not None:
            self._update.work += self._clock() - self._batch

    def go_on(self) -> None:
        """Ends `pause`."""
        if self._batch is not None:
            self._batch = self._clock()

    def end_batch(self) -> None:
        """The batch is done; waiting for the next one begins."""
        self.pause()
        self._update.count += self._count
        self.start_gap()

    def end_update(self) -> None:
        """The batch that is done was the last one of an update."""
        self._updates += 1
        if self._updates == 2:
            self.recent.clear()
            self.total = Update()
        self.recent.append(self._update)
        self.total = Update.sum([self.total, self._update])
        self._update = Update()


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that at least `percent` % of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
