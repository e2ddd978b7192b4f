"""The loss of a batch, and losses added up without asking the device before somebody needs a
number.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer_callback import RunError, UsageError
from trainer_callback.errors import show

from ..processes.ranks import ALONE, Ranks
from .parts import with_article

__all__ = [
    "LossError",
    "LossMeter",
    "NonFiniteError",
    "apply_model",
    "call_model",
    "check_count",
    "check_form",
    "check_loss",
    "default_loss",
]

_OWN: Final = (
    "Pass loss_fn=lambda model, batch: ... to Trainer, such as "
    "torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
)


_NONE: Final[list[tuple[Tensor, float]]] = []


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is NaN or infinite."""


class LossError(UsageError, TypeError):
    """What should be the loss of a batch is none."""


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Returns the model's own output as the loss, or its `.loss`.

    Args:
        batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        LossError: the model does not take such a batch, or returned something else.
    """
    output = call_model(model, batch)
    return output if isinstance(output, Tensor) else output.loss


def call_model(model: nn.Module, batch: Any) -> Any:
    """Returns what the model makes of a batch: a loss, or an object with one as `.loss`.

    Args:
        batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        LossError: the model does not take such a batch, or returned something else.
    """
    output = apply_model(model, batch)
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise LossError(
            f"the model returned {with_article(type(output))}{shape}, which is no loss. "
            "Return a 0-dim tensor or an object with .loss, or pass loss_fn=... to Trainer."
        )
    return output


def apply_model(model: nn.Module, batch: Any) -> Any:
    """Returns what the model makes of a batch, which is its arguments: a tensor, a tuple, or a dict
    of those by name.

    Raises:
        LossError: the model does not take such a batch.
    """
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        named = dict(batch)
    elif isinstance(batch, (tuple, list)):
        arguments = [*batch]
    else:
        arguments = [batch]
    try:
        return model(*arguments, **named)
    except TypeError as error:
        _check_arguments(model, arguments, named, error)
        raise


def check_loss(loss: object) -> None:
    """Says what is wrong with something that cannot be trained on.

    Raises:
        LossError: it is no 0-dim real tensor, or depends on no parameter.
    """
    if (
        isinstance(loss, Tensor)
        and not loss.ndim
        and loss.requires_grad
        and loss.is_floating_point()
    ):
        return
    if not check_form(loss).requires_grad:
        raise LossError(
            "the loss of a batch depends on no parameter that requires a gradient. Compute it "
            "without detach(), item(), torch.no_grad() or numpy on the way from the model."
        )


def check_form(loss: object) -> Tensor:
    """Returns a loss that is a 0-dim real tensor; in a validation it needs no gradient.

    Raises:
        LossError: it is something else.
    """
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss of a batch is a 0-dim tensor, and not {with_article(type(loss))}. Return "
            'from loss_fn a loss, (loss, outputs), {"loss": loss, ...}, an object with .loss, or '
            "trainer.Loss(total, count); hand run.backward a loss, or a Loss."
        )
    if loss.ndim:
        raise LossError(
            f"the loss of a batch is a 0-dim tensor, and not one of shape {tuple(loss.shape)}. "
            "Take its .mean(), or .squeeze() where it has one element."
        )
    if loss.is_complex():
        raise LossError(f"the loss of a batch is a real number, and not {loss.dtype}.")
    return loss


def check_count(count: object) -> None:
    """Refuses what is no number of items. A tensor is not read here, which would wait for its
    device: what it was is looked at when it has been read.

    Raises:
        LossError: it is none.
    """
    if isinstance(count, Tensor):
        is_number = count.dtype != torch.bool and not count.is_complex()
        is_count = is_number and not count.ndim and not count.requires_grad
    else:
        is_number = isinstance(count, (float, numbers.Integral)) and not isinstance(count, bool)
        is_count = is_number and 0 <= count < 2**63  # type: ignore[operator]
    if is_count:
        return
    raise LossError(
        f"the count of a Loss is a number of at least 0 or a 0-dim tensor, and not {show(count)}. "
        "Write Loss(total, count=mask.sum())."
    )


def _check_arguments(
    model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], error: TypeError
) -> None:
    """Raises a LossError if it was the batch that did not fit the model's `forward`."""
    for wrapper in ("_orig_mod", "module"):  # of a compiled one, and a parallel one inside
        model = getattr(model, wrapper, model)
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except TypeError as reason:
        what = f"keys {', '.join(map(str, named))}" if named else f"{len(arguments)} items"
        raise LossError(
            f"without loss_fn a batch is the arguments of the model, and {type(model).__name__} "
            f"does not take a batch of {what} ({reason}). {_OWN}"
        ) from error


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
