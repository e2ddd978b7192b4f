"""What callbacks cost: seconds per plugin and hook, the hooks of the batch from a sample."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..hookspecs import SPECS

__all__ = ["SAMPLE_EVERY", "CostMeter", "HookCost"]

logger: logging.Logger = logging.getLogger("trainer")

SAMPLE_EVERY: Final = 31
"""Hooks of the batch are timed in one update of so many: a prime, so that it does not fall in step
with anybody's interval.
"""

_ENOUGH_SAMPLES: Final = 5
_EXPENSIVE: Final = 0.05


@dataclass
class HookCost:
    """Time that one plugin spent in one hook, in the calls that were timed."""

    calls: int = 0
    seconds: float = 0.0


class CostMeter:
    """Adds up costs, and chooses the updates that are timed.

    The first update is timed and counted as it is: what a callback does once, such as an import,
    must not be scaled up. Of the others one in `SAMPLE_EVERY` is timed, the second one first.
    """

    def __init__(self) -> None:
        self._costs: dict[tuple[str, str], HookCost] = {}
        self._first: dict[tuple[str, str], HookCost] = {}
        self._updates = self._samples = 0
        self._next = 1
        self._started: float | None = None
        self._elapsed = 0.0
        self._named: set[str] = set()

    def cost(self, name: str, hook: str) -> HookCost:
        """Returns where the time of plugin `name` in `hook` is added up."""
        return self._costs.setdefault((name, hook), HookCost())

    def start_update(self) -> bool:
        """Ends the update before, and returns whether the one that starts is to be timed."""
        self._updates += 1
        if self._updates < self._next:  # most updates end here
            return False
        return self._start_sample()

    def totals(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns plugin name -> hook -> `calls` and `seconds`; hooks of the batch are scaled up
        from their sample.
        """
        result: dict[str, dict[str, dict[str, float]]] = {}
        scale = (self._updates - 1) / self._samples if self._samples else 1.0
        for (name, hook), cost in self._costs.items():
            if not cost.calls:
                continue
            first = self._first.get((name, hook), HookCost())
            factor = scale if _is_sampled(hook) else 1.0
            result.setdefault(name, {})[hook] = {
                "calls": first.calls + (cost.calls - first.calls) * factor,
                "seconds": first.seconds + (cost.seconds - first.seconds) * factor,
            }
        return result

    def _start_sample(self) -> bool:
        """Ends the update that was timed, if any; `_next` is the update to look at again."""
        if self._started is not None:
            self._end_sample(time.perf_counter() - self._started)
        if self._updates == 2:
            self._first = {key: replace(cost) for key, cost in self._costs.items()}
        timed = self._updates == 1 or self._updates % SAMPLE_EVERY == 2
        if not timed:
            self._next = self._updates + SAMPLE_EVERY - 1
            return False
        self._next = self._updates + 1
        if self._updates > 1:
            self._started = time.perf_counter()
            self._samples += 1
        return True

    def _end_sample(self, elapsed: float) -> None:
        self._started = None
        self._elapsed += elapsed
        if self._samples < _ENOUGH_SAMPLES:
            return
        for name, seconds in self._sampled_seconds().items():
            share = seconds / self._elapsed
            if share > _EXPENSIVE and name not in self._named:
                self._named.add(name)
                logger.warning("%s takes %.0f %% of the time of an update.", name, 100 * share)

    def _sampled_seconds(self) -> Mapping[str, float]:
        seconds: dict[str, float] = {}
        for (name, hook), cost in self._costs.items():
            if _is_sampled(hook):
                first = self._first.get((name, hook), HookCost())
                seconds[name] = seconds.get(name, 0.0) + cost.seconds - first.seconds
        return seconds


def _is_sampled(hook: str) -> bool:
    """Whether the time of a hook is that of a sample; those that plugins bring are always timed."""
    return hook in SPECS and SPECS[hook].per_batch
