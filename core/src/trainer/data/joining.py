"""What a model has made of the batches of a set, put together as if they had been one.

Letters: B items of a batch, N of the set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .batches import parts_of

__all__ = ["join"]


def join(
    values: Sequence[Any],
    sizes: Sequence[int | None],
    report: Callable[[Tensor, int], None] = lambda tensor, size: None,
) -> Any:
    """Returns the outputs of batches as those of one. In containers of any kind, tensors (B, ...)
    become one (N, ...), and lists of B one of N. Anything else, and what has another shape behind
    B in each batch, becomes a list with a value per batch.

    Args:
        values: of each batch, on one device.
        sizes: B of each, or None where it is not known: then a tensor has B in front.
        report: called with a tensor that has not B in front, and B.
    """
    first = values[0]
    if any(type(each) is not type(first) for each in values):
        return [*values]
    if isinstance(first, Tensor):
        return _join_tensors(values, sizes, report)
    joined: Any = None
    if isinstance(first, list):
        if all(len(each) == size for each, size in zip(values, sizes, strict=True)):
            joined = [item for each in values for item in each]
    elif isinstance(first, tuple):
        if all(len(each) == len(first) for each in values):
            parts = [join(each, sizes, report) for each in zip(*values, strict=True)]
            joined = type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    elif isinstance(first, Mapping):
        joined = _join_named(values, sizes, report)
    elif first is not None:
        joined = _join_objects(values, sizes, report)
    return [*values] if joined is None and first is not None else joined


def _join_tensors(
    values: Sequence[Tensor], sizes: Sequence[int | None], report: Callable[[Tensor, int], None]
) -> Any:
    for each, size in zip(values, sizes, strict=True):
        if size is not None and (each.ndim == 0 or each.is_nested or len(each) != size):
            report(each, size)
            return [*values]
    plain = all(each.layout == torch.strided and not each.is_nested for each in values)
    if not plain or values[0].ndim == 0 or len({each.shape[1:] for each in values}) > 1:
        return [*values]
    return torch.cat([*values])


def _join_named(
    values: Sequence[Mapping[Any, Any]],
    sizes: Sequence[int | None],
    report: Callable[[Tensor, int], None],
) -> dict[Any, Any] | None:
    first = values[0]
    if any(each.keys() != first.keys() for each in values):
        return None
    return {name: join([each[name] for each in values], sizes, report) for name in first}


def _join_objects(
    values: Sequence[Any], sizes: Sequence[int | None], report: Callable[[Tensor, int], None]
) -> Any:
    parts = [parts_of(each) for each in values]
    known = [each for each in parts if each is not None]
    joined = _join_named(known, sizes, report) if len(known) == len(parts) else None
    if joined is None:
        return None
    own = copy.copy(values[0])
    for name, value in joined.items():
        object.__setattr__(own, name, value)  # also where it is frozen
    return own
