"""Callback state -> plain data that a snapshot can hold and `torch.load(weights_only=True)` can
read. Imports no torch of its own.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from .errors import StateError, show

__all__ = ["to_plain", "to_plain_state"]

_SCALARS: Final = (bool, int, float, str, bytes)


def to_plain(value: object, path: str = "state", *, copy_tensors: bool = True) -> Any:
    """Returns a deep copy of `value` in plain data: None, bool, int, float, str, bytes, list,
    tuple, set, dict and tensors.

    Converted: numpy scalars (to Python numbers), numpy arrays (to tensors), deque (to list),
    frozenset (to set), Path (to str),
    subclasses of dict, list, tuple and of the scalars (to their plain type). Tensors are detached
    copies on their device.

    Args:
        path: how messages name `value`.
        copy_tensors: False keeps the tensors themselves, for a caller that copies them later.

    Raises:
        StateError: something else, or a container that contains itself; the message has the path to
            it.
    """
    return _Converter(copy_tensors).convert(value, path, ())


def to_plain_state(answer: object, key: str, *, copy_tensors: bool = True) -> dict[Any, Any]:
    """Returns what `on_snapshot_save` answered, as plain data.

    Args:
        key: the callback's state key, with which messages begin.
        copy_tensors: as for `to_plain`.

    Raises:
        StateError: it is no mapping, or holds what a snapshot cannot keep.
    """
    if not isinstance(answer, Mapping):
        raise StateError(f"{key} answered {show(answer)}; it must answer a dict or None.")
    plain: dict[Any, Any] = to_plain(answer, key, copy_tensors=copy_tensors)
    return plain


class _Converter:
    def __init__(self, copy_tensors: bool) -> None:
        self._copy_tensors = copy_tensors

    def convert(self, value: object, path: str, parents: tuple[int, ...]) -> Any:
        if isinstance(value, bytes) and not value:
            raise StateError(f"{path} is b'', which torch.load cannot read back. Keep None or ''.")
        if value is None or type(value) in _SCALARS:
            return value
        if isinstance(value, Enum):
            raise StateError(f"{path} is the enum member {value!r}. Keep its .value or .name.")
        if isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
            if id(value) in parents:
                raise StateError(f"{path} contains itself. Keep plain, finite data.")
            return self._convert_container(value, path, (*parents, id(value)))
        if isinstance(value, PurePath):
            return str(value)
        converted = self._convert_array(value, path)
        if converted is not None:
            return converted
        for scalar in _SCALARS:
            if isinstance(value, scalar):
                return scalar(value)  # type: ignore[arg-type]
        raise StateError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a snapshot "
            "cannot keep. Use None, bool, int, float, str, bytes, list, tuple, set, dict or "
            "tensors."
        )

    def _convert_container(self, value: Any, path: str, parents: tuple[int, ...]) -> Any:
        if isinstance(value, Mapping):
            return {
                self._convert_key(key, path): self.convert(item, f"{path}.{key}", parents)
                for key, item in value.items()
            }
        items = [self.convert(item, f"{path}[{i}]", parents) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(items)
        if not isinstance(value, (set, frozenset)):
            return items
        try:
            return set(items)
        except TypeError:  # a frozenset inside becomes a set, which cannot be in a set
            raise StateError(f"{path} is a set that holds sets. Use a list of lists.") from None

    def _convert_key(self, key: object, path: str) -> Any:
        plain = self.convert(key, f"{path}: the key {key!r}", ())
        try:
            hash(plain)
        except TypeError:
            plain = ...
        if not isinstance(plain, (*_SCALARS, tuple, type(None))):
            raise StateError(f"{path}: the key {key!r} is a {type(key).__name__}. Use str or int.")
        return plain

    def _convert_array(self, value: object, path: str) -> Any:
        """Tensors and numpy values; None where `value` is neither, or has no plain counterpart. If
        it is one, its library is imported.
        """
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            return value.detach().clone() if self._copy_tensors else value.detach()
        if numpy is not None and isinstance(value, numpy.generic):
            item = value.item()
            return item if type(item) in _SCALARS else None
        if torch is not None and numpy is not None and isinstance(value, numpy.ndarray):
            try:
                return torch.tensor(value.copy())
            except (TypeError, ValueError) as error:
                raise StateError(f"{path} is an array of {value.dtype}: {error}") from error
        return None
