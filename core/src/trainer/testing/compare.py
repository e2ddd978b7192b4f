"""Two values of plain data -> the first place where they differ, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from trainer.snapshots.model_state import same_bits
from trainer_callback import StateError
from trainer_callback.errors import show
from trainer_callback.state import to_plain

__all__ = ["find_difference", "read_attributes"]


def find_difference(
    expected: object,
    found: object,
    path: str,
    varying: Sequence[str] = (),
    tolerance: float = 0.0,
) -> str | None:
    """Returns `PATH is FOUND instead of EXPECTED` for the first difference, or None. Of two tensors
    of one form it is `PATH has other values`.

    Types count: a list is no tuple, 1 is no True. NaN is equal to NaN, tensors are compared bit by
    bit.

    Args:
        varying: glob patterns of keys (or of their last part) that are not looked at.
        tolerance: by how much floats may differ, as a share of the larger one.
    """
    if type(expected) is type(found):
        if isinstance(expected, Mapping) and isinstance(found, Mapping):
            return _compare_mappings(expected, found, path, varying, tolerance)
        if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
            return _compare_sequences(expected, found, path, varying, tolerance)
        if _is_same(expected, found, tolerance):
            return None
    if isinstance(found, torch.Tensor) and _show(expected) == _show(found):
        return f"{path} has other values ({found.dtype} tensor {tuple(found.shape)})"
    return f"{path} is {_show(found)} instead of {_show(expected)}"


def read_attributes(thing: object, prefix: str = "self") -> dict[str, Any]:
    """Returns path -> value of every attribute that is plain data; those of a dataclass one by
    one.
    """
    found: dict[str, Any] = {}
    for name, value in getattr(thing, "__dict__", {}).items():
        path = f"{prefix}.{name}"
        if name.startswith("__"):
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found.update(read_attributes(value, path))
            continue
        try:
            found[path] = to_plain(value, path)
        except StateError:  # a file, a picture, another object: none of our business
            continue
    return found


def _compare_mappings(
    expected: Mapping[Any, Any],
    found: Mapping[Any, Any],
    path: str,
    varying: Sequence[str],
    tolerance: float,
) -> str | None:
    for key in [*expected, *(key for key in found if key not in expected)]:
        place = f"{path}.{key}"
        if _is_varying(str(key), varying):
            continue
        if key not in found:
            difference: str | None = f"{place} is missing and was {_show(expected[key])}"
        elif key not in expected:
            difference = f"{place} is {_show(found[key])} and was not there"
        else:
            difference = find_difference(expected[key], found[key], place, varying, tolerance)
        if difference is not None:
            return difference
    return None


def _compare_sequences(
    expected: Sequence[Any], found: Sequence[Any], path: str, *how: Any
) -> str | None:
    if len(expected) != len(found):
        return f"{path} has {len(found)} items instead of {len(expected)}"
    pairs = enumerate(zip(expected, found, strict=True))
    differences = (find_difference(a, b, f"{path}[{i}]", *how) for i, (a, b) in pairs)
    return next((difference for difference in differences if difference), None)


def _is_same(expected: object, found: object, tolerance: float) -> bool:
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return same_bits(expected, found)
    if isinstance(expected, float) and isinstance(found, float):
        if math.isnan(expected):
            return math.isnan(found)
        return math.isclose(expected, found, rel_tol=tolerance)
    return expected == found


def _is_varying(name: str, patterns: Sequence[str]) -> bool:
    names = {name, name.rpartition(".")[2]}
    return any(fnmatchcase(each, pattern) for each in names for pattern in patterns)


def _show(value: object) -> str:
    if isinstance(value, torch.Tensor):
        kind = f"{value.dtype} tensor {tuple(value.shape)}"
        return f"{value.item()!r} ({kind})" if value.numel() == 1 else f"another {kind}"
    return show(value)
