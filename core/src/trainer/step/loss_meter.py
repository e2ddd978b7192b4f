"""Losses added up without asking the device before somebody needs a number."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ..processes.ranks import ALONE, Ranks
from .losses import check_count

__all__ = ["LossMeter", "read_scalars"]

_NONE: Final[list[tuple[Tensor, float]]] = []


@dataclass
class _Sums:
    epoch_sum: float = 0.0
    epoch_count: float = 0
    interval_sum: float = 0.0
    interval_count: float = 0

    def add(self, total: float, count: float) -> None:
        self.epoch_sum += total
        self.epoch_count += count
        self.interval_sum += total
        self.interval_count += count


class LossMeter:
    """Means of the training loss over the epoch and over the log interval, each batch weighted by
    its items, summed in float64, over all processes; one for each name, where several optimizers
    have losses of their own.

    Attributes:
        items: of the batch at hand; 1 where their number is not known.
        total: sum of the losses that were read last.
        count: their items in all processes, where the losses are sums; else None.
        verdict: what was read with them.
        empty: how many of the losses are sums over no items.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.reset()

    def reset(self) -> None:
        """Forgets everything, also the losses of an update that has failed."""
        self._sums: defaultdict[str, _Sums] = defaultdict(_Sums)
        self.items: float = 1
        self._pending: dict[str, list[tuple[Tensor, float]]] = {}
        self._summed: dict[str, list[tuple[Tensor, float | Tensor]]] = {}
        self.total: float = 0.0
        self.count: float | None = None
        self.verdict: float = 0.0
        self.empty: float = 0

    def add(self, loss: Tensor, name: str = "", *, to_last: bool = False) -> None:
        """Takes a 0-dim loss; nothing is copied from its device yet. Its graph is held until
        `fetch` only, and the backward pass before that has freed what took memory.

        Args:
            to_last: it is another part of the last one, of the same micro-batch.
        """
        pending, items = self._pending.setdefault(name, []), self.items
        if to_last and pending:
            earlier, items = pending.pop()
            loss = earlier.detach() + loss.detach()
        pending.append((loss, items))

    def add_sum(self, total: Tensor, count: float | Tensor, name: str) -> None:
        """Takes the 0-dim sum of a micro-batch's losses, and the number of its items."""
        self._summed.setdefault(name, []).append((total.detach(), count))

    def drop(self) -> None:
        """Forgets the losses that are not read yet."""
        self._pending, self._summed = {}, {}

    def fetch(
        self, verdict: Tensor | float | None = None, name: str = "", *, overflows: bool = False
    ) -> bool:
        """Reads the losses of `name`, and those without one, that were added since the last call,
        and `verdict` on their gradients, in one copy. Returns whether both are finite in all
        processes; if not, the losses are left out.

        Args:
            overflows: a verdict that is not finite speaks of the loss scale: the losses count.
        """
        if self._summed:
            return self._fetch_sums(verdict, name, overflows=overflows)
        pairs = self._pending.pop("", _NONE)
        first = len(pairs)
        if name:
            pairs = [*pairs, *self._pending.pop(name, _NONE)]
        read, items = zip(*pairs, strict=True) if pairs else ((), ())
        if isinstance(verdict, Tensor):
            *values, self.verdict = read_scalars([*read, verdict])
        else:
            values = [read[0].item()] if len(read) == 1 else read_scalars(read)
            self.verdict = verdict or 0.0
        if first == 1 and not name:
            found = [values[0] * items[0], items[0], 0.0, 0]
        else:
            values = [*map(operator.mul, values, items)]
            found = [sum(values[:first]), sum(items[:first])]
            found += [sum(values[first:]), sum(items[first:])]
        if not self._ranks.is_alone:
            *found, self.verdict = self._ranks.total([*found, self.verdict], "update")
        self.total = found[0] + found[2]
        if not (math.isfinite(self.total) and (overflows or math.isfinite(self.verdict))):
            return False
        if found[1]:
            self._sums[""].add(found[0], found[1])
        if found[3]:
            self._sums[name].add(found[2], found[3])
        return True

    def _fetch_sums(self, verdict: Tensor | float | None, name: str, *, overflows: bool) -> bool:
        """As `fetch`, of losses that are sums."""
        totals, counts = zip(*self._summed.pop(name), strict=True)
        dtype = torch.float32 if totals[0].device.type == "mps" else torch.float64
        read = [torch.stack([total.to(dtype) for total in totals]).sum()]
        read += [count for count in counts if isinstance(count, Tensor)]
        known = [count for count in counts if not isinstance(count, Tensor)]
        read += [verdict] if isinstance(verdict, Tensor) else []
        total, *rest = read_scalars(read)
        self.verdict = rest.pop() if isinstance(verdict, Tensor) else verdict or 0.0
        for count in rest:
            check_count(count)
        known += rest
        found = [total, sum(known), self.verdict, known.count(0)]
        self.total, self.count, self.verdict, self.empty = self._ranks.total(found, "update")
        if not (math.isfinite(self.total) and (overflows or math.isfinite(self.verdict))):
            return False
        self._sums[name].add(self.total, self.count)
        return True

    def take_interval(self) -> dict[str, float]:
        """Returns the mean of each name since the last call; no name where nothing was added."""
        means = {}
        for name, sums in self._sums.items():
            if sums.interval_count:
                means[name] = sums.interval_sum / sums.interval_count
            sums.interval_sum, sums.interval_count = 0.0, 0
        return means

    def epoch_means(self) -> dict[str, float]:
        """Returns the mean of each name over the epoch so far."""
        found = self._sums.items()
        return {name: each.epoch_sum / each.epoch_count for name, each in found if each.epoch_count}

    def start_epoch(self) -> None:
        """Forgets the epoch's losses; the log interval goes on."""
        for sums in self._sums.values():
            sums.epoch_sum, sums.epoch_count = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Returns the sums as plain data: those without a name, and in `named` the others."""
        named = {name: asdict(sums) for name, sums in self._sums.items() if name}
        return {**asdict(self._sums[""]), **({"named": named} if named else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from the sums of `state`."""
        own = dict(state)
        named = own.pop("named", {})
        self._sums.clear()
        self._sums.update({name: _Sums(**sums) for name, sums in {"": own, **named}.items()})


def read_scalars(scalars: Sequence[Tensor]) -> list[float]:
    """Returns 0-dim tensors as numbers, those of one device in one copy."""
    if not scalars or scalars[0].is_cpu or scalars[-1].is_cpu:
        return list(map(Tensor.item, scalars))
    double = any(scalar.dtype == torch.float64 for scalar in scalars)
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad():
        values: list[float] = torch.stack([scalar.to(dtype) for scalar in scalars]).tolist()
    return values
