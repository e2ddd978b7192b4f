"""Verdicts that are still on the device: whether all numbers of an update are finite.

To read one before the step leaves the device idle. An optimizer of torch with `fused=True` need not
be told by the host: it takes `found_inf`, as GradScaler hands it over, and leaves weights, state
and count of steps alone where that is 1. Here it stays 1 behind the first bad update, so that all
later ones are left out as well until somebody reads the verdicts, and the run ends with the weights
that it had before.

The room knows losses and optimizers; it does not know what a bad update means.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import NoneType
from typing import Any, Final, TypeAlias

import numpy
import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ..processes.ranks import ALONE, Ranks
from .loss_meter import LossMeter, stack_scalars

__all__ = [
    "Settings",
    "Verdicts",
    "copy_plain",
    "copy_settings",
    "find_form",
    "obeys_found_inf",
    "put_back_settings",
]

_MOST: Final = 256
"""Updates whose verdicts are not read yet: so many at most are trained in vain."""

_WAITING_COSTS: Final = frozenset({"cuda"})
"""Kinds of devices that work while the host goes on. Tests add the CPU, on which waiting is free
and the host reads each verdict before the step.
"""

_FIXED: Final = frozenset({int, float, bool, str, NoneType})
"""Kinds of values that cannot change."""

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
        undo: called instead, where an earlier update was bad.
    """

    name: str
    numbers: Tensor
    weights: Sequence[float]
    items: Sequence[float]
    empty: float
    unnamed: int
    end: Callable[[float, bool], None]
    undo: Callable[[], None]


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

    def add(
        self,
        name: str,
        verdict: Tensor | float | None,
        end: Callable[[float, bool], None],
        undo: Callable[[], None],
    ) -> Tensor:
        """Takes an update of the optimizer `name`; returns its `found_inf`, 0-dim, float32, 0 or 1:
        whether a number of this update, or of an earlier one, is not finite in any process. Nothing
        waits for it.

        Args:
            verdict: on its gradients; not finite where one of them is not.
            end, undo: called by `settle`; see there.
        """
        if len(self._unread) >= _MOST:
            self.settle()
        losses, weights, items, unnamed = self._losses.take(name)
        numbers = [*losses, verdict] if isinstance(verdict, Tensor) else losses
        row = stack_scalars(numbers, self._device)
        taken = _Unread(name, row, weights, items, self._losses.empty, unnamed, end, undo)
        self._unread.append(taken)
        if self._bad is None:
            self._bad = torch.zeros((), device=self._device)
        self._bad += self._ranks.add_up(row.mul(0.0).sum().float())  # NaN where one is not finite
        return self._bad.ne(0.0).float()

    def settle(self) -> None:
        """Reads the verdicts and losses, in one copy, and adds up the losses; all processes have to
        call it at the same place. Of each update `end` is called, with the verdict on the gradients
        of this process, and whether everything was finite in all; what it raises passes. Before
        that of a bad one, `undo` is called of all later ones, the last first.
        """
        if not self._unread:
            return
        unread, self._unread, self._bad = self._unread, [], None
        values = iter(torch.cat([each.numbers for each in unread]).tolist())
        verdicts: list[float] = []
        found: list[float] = []
        for each in unread:
            losses = [*islice(values, len(each.items))]
            verdicts.append(next(values) if len(each.numbers) > len(losses) else 0.0)
            sums = self._losses.weigh(losses, each.weights, each.items, each.unnamed)
            found += [*sums, verdicts[-1], each.empty]
        columns = iter(self._ranks.total(found, "update"))
        for number, each in enumerate(unread):
            sums = [*islice(columns, 5)]
            self._losses.empty = next(columns)
            is_good = self._losses.admit(sums, each.name)
            if not is_good:
                for later in reversed(unread[number + 1 :]):
                    later.undo()
            each.end(verdicts[number], is_good)


def obeys_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of `optimizer` changes nothing where its `found_inf` is 1: torch's own step,
    fused, and nothing beside it. RMSprop and Muon do not look at it, and say nothing.
    """
    step = getattr(type(optimizer), "step", None)
    own: Any = vars(optimizer).get("step", step)
    is_counted = hasattr(own, "_wrapped_by_lr_sched") or hasattr(own, "_with_counter")  # by torch
    return (
        getattr(step, "__module__", "").startswith("torch.optim.")
        and (own is step or (is_counted and own.__wrapped__ is step))
        and getattr(optimizer, "_step_supports_amp_scaling", False)
        and all(group.get("fused") for group in optimizer.param_groups)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        and not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
    )


def find_form(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    """Returns what tells cheaply whether the next step will make state, because somebody has
    changed the optimizer: how many parameters there are, how many have state, and which groups have
    a momentum.
    """
    groups = optimizer.param_groups
    count = sum(len(group["params"]) for group in groups)
    return (count, len(optimizer.state), *(bool(group.get("momentum")) for group in groups))


def copy_plain(value: Any) -> Any:
    """Returns the state of a scheduler, or a setting, as it is: a copy of what can change."""
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is dict:
        return {k: v if type(v) in _FIXED else copy_plain(v) for k, v in value.items()}
    if kind is list:
        return [*map(copy_plain, value)]
    if isinstance(value, Tensor):
        return value.detach().clone()
    changes = isinstance(value, (Mapping, list, set, deque, numpy.ndarray))
    return copy.deepcopy(value) if changes else value


def copy_settings(optimizer: torch.optim.Optimizer) -> Settings:
    """Returns the settings of the optimizer's groups, such as the learning rate, as they are."""
    groups = [{**group} for group in optimizer.param_groups]
    for group in groups:
        del group["params"]
    return [*map(copy_plain, groups)]


def put_back_settings(optimizer: torch.optim.Optimizer, settings: Settings) -> None:
    """Puts the settings of the groups back, which a scheduler may have changed since; groups that
    have come since go.
    """
    del optimizer.param_groups[len(settings) :]
    for group, before in zip(optimizer.param_groups, settings, strict=False):
        for name, value in before.items():
            if isinstance(value, Tensor) and isinstance(group.get(name), Tensor):
                group[name].copy_(value)
            else:
                group[name] = value
