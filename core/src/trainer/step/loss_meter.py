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

__all__ = ["LossMeter", "read_scalars", "stack_scalars"]

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
        verdict: what was read with them, of all processes.
        own_verdict: the same of this process.
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
        self.own_verdict: float = 0.0
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
        pairs = self._pending.get(name, _NONE)
        is_plain = len(pairs) == 1 and not name and self._ranks.is_alone
        if is_plain and not isinstance(verdict, Tensor):
            return self._fetch_one(*pairs.pop(), verdict or 0.0, overflows=overflows)
        read, weights, items, unnamed = self.take(name)
        if isinstance(verdict, Tensor):
            *values, own = read_scalars([*read, verdict])
        else:
            values = [read[0].item()] if len(read) == 1 else read_scalars(read)
            own = verdict or 0.0
        self.own_verdict = own
        found = [*self.weigh(values, weights, items, unnamed), own]
        if not self._ranks.is_alone:
            found = self._ranks.total(found, "update")
        return self.admit(found, name, overflows=overflows)

    def _fetch_one(self, loss: Tensor, items: float, verdict: float, *, overflows: bool) -> bool:
        """As `fetch`, of one loss without a name, in a process that is alone."""
        self.total = total = loss.item() * items
        self.verdict = self.own_verdict = verdict
        if not (math.isfinite(total) and (overflows or math.isfinite(verdict))):
            return False
        if items:
            self._sums[""].add(total, items)
        return True

    @property
    def are_sums(self) -> bool:
        """Whether the losses that were added last are sums."""
        return bool(self._summed)

    def take(self, name: str) -> tuple[Sequence[Tensor], Sequence[float], Sequence[float], int]:
        """Returns the losses that `fetch` would read, unread; of each its weight and its items, and
        how many of them have no name. Of sums the numbers of items have to be known.
        """
        if self._summed:
            totals, counts = zip(*self._summed.pop(name), strict=True)
            self.empty = counts.count(0)
            return [_add_up(totals)], [1.0], [sum(counts)], not name
        pairs = self._pending.pop("", _NONE)
        unnamed = len(pairs)
        if name:
            pairs = [*pairs, *self._pending.pop(name, _NONE)]
        losses, items = zip(*pairs, strict=True) if pairs else ((), ())
        return losses, items, items, unnamed

    def weigh(
        self,
        values: Sequence[float],
        weights: Sequence[float],
        items: Sequence[float],
        unnamed: int,
    ) -> list[float]:
        """Returns the sum of losses without a name, their items, and the same of the others."""
        values = [*map(operator.mul, values, weights)]
        found = [sum(values[:unnamed]), sum(items[:unnamed])]
        return [*found, sum(values[unnamed:]), sum(items[unnamed:])]

    def admit(self, found: Sequence[float], name: str, *, overflows: bool = False) -> bool:
        """Adds what `weigh` has found, and the verdict behind it, of all processes, to the means;
        returns whether it is finite. If not, the losses are left out.
        """
        total, count, own_total, own_count, self.verdict = found
        self.total = total + own_total
        if not (math.isfinite(self.total) and (overflows or math.isfinite(self.verdict))):
            return False
        if count:
            self._sums[""].add(total, count)
        if own_count:
            self._sums[name].add(own_total, own_count)
        return True

    def _fetch_sums(self, verdict: Tensor | float | None, name: str, *, overflows: bool) -> bool:
        """As `fetch`, of losses that are sums."""
        totals, counts = zip(*self._summed.pop(name), strict=True)
        read = [_add_up(totals)]
        read += [count for count in counts if isinstance(count, Tensor)]
        known = [count for count in counts if not isinstance(count, Tensor)]
        read += [verdict] if isinstance(verdict, Tensor) else []
        total, *rest = read_scalars(read)
        own = rest.pop() if isinstance(verdict, Tensor) else verdict or 0.0
        self.own_verdict = own
        for count in rest:
            check_count(count)
        known += rest
        found = [total, sum(known), own, known.count(0)]
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
    values: list[float] = stack_scalars(scalars, scalars[0].device).tolist()
    return values


def stack_scalars(scalars: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns N 0-dim tensors as one (N,) on `device`, each of them exactly: float64 where one of
    them is, else float32.
    """
    double = any(scalar.dtype == torch.float64 for scalar in scalars)
    dtype = torch.float64 if double else torch.float32
    if not scalars:
        return torch.zeros(0, device=device)
    with torch.no_grad():
        return torch.stack([scalar.to(device, dtype, non_blocking=True) for scalar in scalars])


def _add_up(totals: Sequence[Tensor]) -> Tensor:
    """Returns the sum of 0-dim tensors, in float64 where the device has it."""
    dtype = torch.float32 if totals[0].device.type == "mps" else torch.float64
    return torch.stack([total.to(dtype) for total in totals]).sum()
