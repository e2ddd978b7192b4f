"""Whether weights and optimizer state may be kept: nothing may have become NaN or infinite since
the run began.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy
import torch
from torch import Tensor, nn

from trainer_callback.tensors import local_part

from ..processes.ranks import Ranks
from ..processes.sharding import find_tensors

__all__ = ["FiniteCheck"]

logger: logging.Logger = logging.getLogger("trainer")

_FINITE, _INFINITE, _NAN = 0, 1, 2
_OPTIMIZER: Final = "optimizer."
_CHUNK_ELEMENTS: Final = 1 << 15
"""Elements that are looked at in one call: few enough that torch does it in this thread alone, and
takes nothing from the threads that train.
"""


class FiniteCheck:
    """Compares tensors with what they were when the run began or was resumed.

    A tensor that was infinite then (an attention mask) may be infinite, one that was NaN may be
    anything. A parameter, or a tensor of the optimizer's state or settings, that was finite or not
    there must be finite. A buffer must not be NaN; of one that becomes infinite it warns, once: a
    module may build its mask when it is first called.
    """

    def __init__(self) -> None:
        self._worst: dict[str, int] = {}
        self._parameters: set[str] = set()

    def start(self, model: nn.Module, optimizer: Mapping[str, Any], ranks: Ranks) -> None:
        """Looks at the tensors of a run before its first update; all processes have to call it.

        Args:
            optimizer: its `state_dict`, or those of several by their names.
        """
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        found = _name_tensors({"model": model.state_dict(), "optimizer": optimizer})
        worst = {name: _look(local_part(tensor)) for name, tensor in found}
        bad = {name: value for name, value in worst.items() if value != _FINITE}
        self._worst = {}
        for each in ranks.gather(bad, "weights at the start"):
            for name, value in each.items():
                self._worst[name] = max(value, self._worst.get(name, _FINITE))

    def describe_fault(self, state: Mapping[str, Any]) -> str | None:
        """Returns which tensor of `state` became NaN or infinite, or None.

        Args:
            state: `model` and, where it is to be looked at, `optimizer`, as their `state_dict`
                has them; of sharded tensors this process's part is looked at.
        """
        for name, tensor in _name_tensors(state):
            now = _look(local_part(tensor))
            if now <= self._worst.get(name, _FINITE):
                continue
            if name in self._parameters or name.startswith(_OPTIMIZER):
                return f"{name!r} is {'infinite' if now == _INFINITE else 'NaN'}"
            if now == _NAN:
                return f"the buffer {name!r} is NaN"
            self._worst[name] = now
            logger.warning(
                "the buffer %r has become infinite. Snapshots keep it as it is; if that is wrong, "
                "go on from one before.",
                name,
            )
        return None


def _name_tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a model by their names, those of an optimizer by their places."""
    yield from find_tensors(state.get("model", {}))
    optimizer = state.get("optimizer", {})
    alone = "param_groups" in optimizer
    for part in ("state", "param_groups"):
        found = optimizer[part] if alone else {k: each[part] for k, each in optimizer.items()}
        yield from find_tensors(found, f"{_OPTIMIZER}{part}")


def _look(tensor: Tensor) -> int:
    """Returns the worst that is in `tensor`. A kind of tensor that cannot be asked is none that a
    snapshot can keep, or knows neither.
    """
    if _has_finite_sum(tensor):
        return _FINITE
    try:
        return max(map(_judge, _find_bounds(tensor)), default=_FINITE)
    except (RuntimeError, TypeError, ValueError):
        return _FINITE


def _has_finite_sum(tensor: Tensor) -> bool:
    """Whether the sum is finite: then each number is. numpy adds those of 32 and 64 bits at the
    speed of the memory, in this thread alone, without the interpreter lock. After `tensor.numpy()`
    torch would never resize the tensor again.
    """
    if not tensor.is_cpu or tensor.dtype not in (torch.float32, torch.float64):
        return False
    with contextlib.suppress(Exception), numpy.errstate(all="ignore"):  # a kind unknown to numpy
        return bool(numpy.isfinite(numpy.from_dlpack(tensor.detach()).sum()))
    return False


def _find_bounds(tensor: Tensor) -> Iterator[Tensor]:
    """Yields the least and the greatest number of each piece; NaN wins."""
    tensor = tensor.detach()
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    if tensor.layout == torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:  # eight bits have no arithmetic
        tensor = tensor.float()
    flat = tensor.flatten()
    size = _CHUNK_ELEMENTS if tensor.is_cpu else max(1, flat.numel())
    for start in range(0, flat.numel(), size):
        yield from flat[start : start + size].aminmax()


def _judge(number: Tensor) -> int:
    value = float(number)
    return _NAN if math.isnan(value) else _INFINITE if math.isinf(value) else _FINITE
