"""Verdicts that are still on the device: whether all numbers of an update are finite.

To read one before the step leaves the device idle. An optimizer of torch with `fused=True` need not
be told by the host: it takes `found_inf`, as GradScaler hands it over, and leaves weights, state
and count of steps alone where that is 1. Here it stays 1 behind the first bad update, so that all
later ones are left out as well until somebody reads the verdicts, and the run ends with the weights
that it had before.

The room knows losses and optimizers; it does not know what a bad update means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ..processes.ranks import ALONE, Ranks
from .loss_meter import LossMeter, stack_scalars

__all__ = ["Settings", "Verdicts", "copy_settings", "obeys_found_inf", "put_back_settings"]

_MOST: Final = 256
"""Updates whose verdicts are not read yet: so many at most are trained in vain."""

_WAITING_COSTS: Final = frozenset({"cuda"})
"""Kinds of devices that work while the host goes on. Tests add the CPU, on which waiting is free
and the host reads each verdict before the step.
"""

Settings: TypeAlias = Sequence[dict[str, Any]]
"""Of each group of an optimizer."""


@dataclass(frozen=True)
class _Unread:
    """An update of an optimizer.

    Attributes:
        numbers: its losses, and the verdict on its gradients, in one tensor (N,).
        weights, items: of each loss.
        empty: how many sums over no items are in it.
        unnamed: how many of the losses belong to no optimizer.
        end: called with the verdict of this process, and whether all numbers are finite in all.
    """

    name: str
    numbers: Tensor
    weights: Sequence[float]
    items: Sequence[float]
    empty: float
    unnamed: int
    end: Callable[[float, bool], None]


class Verdicts:
    """The updates of a run whose verdicts nobody has read. The order is that of their steps."""

    def __init__(self, losses: LossMeter, device: torch.device, ranks: Ranks = ALONE) -> None:
        """Takes what adds up the losses, which are read with the verdicts."""
        self._losses, self._device, self._ranks = losses, device, ranks
        self.reset()

    def reset(self) -> None:
        """A run begins."""
        self._unread: list[_Unread] = []
        self._bad: Tensor | None = None

    def may_wait(self, optimizer: torch.optim.Optimizer, *, wanted: bool) -> bool:
        """Returns whether verdicts on the steps of `optimizer` may stay on the device: it obeys
        them in all processes, which all have to call this, and waiting costs something.
        """
        if self._device.type not in _WAITING_COSTS:
            return False
        refused = not (wanted and obeys_found_inf(optimizer))
        return not self._ranks.highest(refused, "verdicts")

    def add(self, name: str, verdict: Tensor | float | None, end: Callable[..., None]) -> Tensor:
        """Takes an update of the optimizer `name`; returns its `found_inf`, 0-dim, float32, 0 or 1:
        whether a number of this update, or of an earlier one, is not finite in any process. Nothing
        waits for it.

        Args:
            verdict: on its gradients; not finite where one of them is not.
            end: called by `settle`; see there.
        """
        if len(self._unread) >= _MOST:
            self.settle()
        losses, weights, items, unnamed = self._losses.take(name)
        numbers = [*losses, verdict] if isinstance(verdict, Tensor) else losses
        row = stack_scalars(numbers, self._device)
        self._unread.append(_Unread(name, row, weights, items, self._losses.empty, unnamed, end))
        if self._bad is None:
            self._bad = torch.zeros((), device=self._device)
        self._bad += self._ranks.add_up(row.mul(0.0).sum().float())  # NaN where one is not finite
        return self._bad.ne(0.0).float()

    def settle(self) -> None:
        """Reads the verdicts and losses, in one copy, and adds up the losses; all processes have to
        call it at the same place. Of each update `end` is called, with the verdict on the gradients
        of this process, and whether everything was finite in all; what it raises passes.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = iter(torch.cat([each.numbers for each in unread]).tolist())
        verdicts: list[float] = []
        found: list[float] = []
        for each in unread:
            losses = [*islice(values, len(each.items))]
            verdicts.append(next(values) if len(each.numbers) > len(losses) else 0.0)
            sums = self._losses.weigh(losses, each.weights, each.items, each.unnamed)
            found += [*sums, verdicts[-1], each.empty]
        columns = iter(self._ranks.total(found, "update"))
        for each, verdict in zip(unread, verdicts, strict=True):
            sums = [*islice(columns, 5)]
            self._losses.empty = next(columns)
            each.end(verdict, self._losses.admit(sums, each.name))


def obeys_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of `optimizer` changes nothing where its `found_inf` is 1: torch's own step,
    fused, and nothing beside it. RMSprop and Muon do not look at it, and say nothing.
    """
    step = getattr(type(optimizer), "step", None)
    return (
        getattr(step, "__module__", "").startswith("torch.optim.")
        and getattr(optimizer, "_step_supports_amp_scaling", False)
        and all(group.get("fused") for group in optimizer.param_groups)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
    )


def copy_settings(optimizer: torch.optim.Optimizer) -> Settings:
    """Returns the settings of the optimizer's groups, such as the learning rate, as they are."""
    return [
        {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def put_back_settings(optimizer: torch.optim.Optimizer, settings: Settings) -> None:
    """Puts the settings of the groups back, which a scheduler may have changed since."""
    for group, before in zip(optimizer.param_groups, settings, strict=False):
        for name, value in before.items():
            if isinstance(value, Tensor) and isinstance(group.get(name), Tensor):
                group[name].copy_(value)
            else:
                group[name] = value
