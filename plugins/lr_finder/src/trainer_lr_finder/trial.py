"""Updates of a model that leave no trace of them."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer_callback import UsageError

if TYPE_CHECKING:
    import torch

    from trainer_callback import TrainerProtocol

__all__ = ["TrialOptimizer", "no_trace"]


@contextlib.contextmanager
def no_trace(trainer: TrainerProtocol) -> Iterator[None]:
    """Puts weights, buffers and random numbers back at its end, bit by bit, and drops gradients."""
    import numpy
    import torch

    model, device = trainer.model, trainer.device
    weights = [(each, each.detach().clone()) for each in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    numbers = random.getstate(), numpy.random.get_state()
    cards: dict[str, Any] = {"devices": []}
    if device.type != "cpu":
        cards = {"devices": [device], "device_type": device.type}
    try:
        with torch.random.fork_rng(**cards):
            yield
    finally:
        random.setstate(numbers[0])
        numpy.random.set_state(numbers[1])
        with torch.no_grad():
            for weight, own in weights:
                weight.copy_(own)
                weight.grad = None
            for module, name, buffer, own in buffers:
                setattr(module, name, buffer.copy_(own))


class TrialOptimizer:
    """A copy of an optimizer, with the same weights and a state of its own; nothing counts its
    steps, and no hook hears of them.
    """

    def __init__(self, trainer: TrainerProtocol) -> None:
        """Copies the run's.

        Raises:
            UsageError: it has another one, whose steps would count.
        """
        given = trainer.optimizer
        _refuse_wrapper(given)
        self._own = copy.copy(given)
        for name, value in vars(given).items():  # torch copies what it knows itself
            if name != "step" and name not in vars(self._own):
                setattr(self._own, name, value)
        self._own.state = defaultdict(dict, {p: copy.deepcopy(s) for p, s in given.state.items()})
        self._own.param_groups = [dict(group) for group in given.param_groups]
        bases = [float(group.get("initial_lr", group["lr"])) for group in given.param_groups]
        self._shares = [base / bases[0] if bases[0] else 1.0 for base in bases]
        self._limit = trainer.max_grad_norm or math.inf
        self._scale = trainer.loss_scale or 1.0

    def backward(self, loss: torch.Tensor, batches: int) -> None:
        """Adds up the gradients of one of so many batches of an update."""
        scaled: Any = loss * (self._scale / batches)
        scaled.backward()

    def step(self, rate: float) -> None:
        """Takes a step with `rate` in the first group, and the others' by the same factor; none
        where a gradient is not finite, as the run takes none, or tries with a lower loss scale.
        """
        import torch

        for group, share in zip(self._own.param_groups, self._shares, strict=True):
            given = group["lr"]
            is_tensor = isinstance(given, torch.Tensor)
            group["lr"] = torch.full_like(given, rate * share) if is_tensor else rate * share
        every: Sequence[Any] = [p for group in self._own.param_groups for p in group["params"]]
        present = [parameter for parameter in every if parameter.grad is not None]
        for parameter in present:
            parameter.grad /= self._scale
        norm: Any = torch.nn.utils.clip_grad_norm_(present, self._limit)
        if math.isfinite(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)):
            self._own.step()
        else:
            self._scale = max(1.0, self._scale / 2)
        for parameter in present:
            parameter.grad = None


def _refuse_wrapper(optimizer: torch.optim.Optimizer) -> None:
    import torch

    for name, value in vars(optimizer).items():
        each: Iterable[object] = value.values() if isinstance(value, Mapping) else [value]
        each = value if isinstance(value, (list, tuple)) else each
        if any(isinstance(one, torch.optim.Optimizer) for one in each):
            kind = type(optimizer).__name__
            raise UsageError(
                f"LRFinderCallback: the optimizer {kind} has another one in {kind}.{name}, which "
                "would keep the updates that are tried. Look for a rate with a plain optimizer, or "
                "leave LRFinderCallback out."
            )
