"""Callback state -> plain data that a snapshot can hold and `torch.load(weights_only=True)` can
read. Imports no torch of its own.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any, Final

from .errors import StateError, show
from .tensors import is_sharded

__all__ = ["to_plain", "to_plain_state"]

_SCALARS: Final = (bool, int, float, str, bytes)

_MOST_BITS: Final = 2040
"""Of an integer: torch.load cannot read longer ones."""

_MOST_DEEP: Final = 100
"""Containers inside each other: what writes and reads them is recursive."""


def to_plain(value: object, path: str = "state", *, copy_tensors: bool = True) -> Any:
    """Returns a deep copy of `value` in plain data: None, bool, int, float, str, bytes, list,
    tuple, set, dict and tensors.

    Converted: numpy scalars (to Python numbers), numpy arrays (to tensors), deque (to list),
    frozenset (to set), Path (to str),
    subclasses of dict, list, tuple, of the scalars and of `torch.Tensor` (to their plain type).
    Tensors are detached copies on their device; a DTensor stays one, for a caller that gathers it.

    Args:
        path: how messages name `value`.
        copy_tensors: False keeps the tensors themselves, for a caller that copies them later.

    Raises:
        StateError: something else (so is a tensor in a set or in a key, or one that has no values
            of its own), or a container that contains itself or a hundred others; the message has
            the path to it.
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
        if value is None or type(value) in _SCALARS:
            _check_scalar(value, path)
            return value
        if isinstance(value, Enum):
            raise StateError(f"{path} is the enum member {value!r}. Keep its .value or .name.")
        if isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
            if id(value) in parents:
                raise StateError(f"{path} contains itself. Keep plain, finite data.")
            if len(parents) >= _MOST_DEEP:
                where = path if len(path) < 100 else f"{path[:100]}..."
                raise StateError(
                    f"{where} is nested more than {_MOST_DEEP} deep. Keep it as a flat list."
                )
            return self._convert_container(value, path, (*parents, id(value)))
        if isinstance(value, PurePath):
            return str(value)
        converted = self._convert_array(value, path)
        if converted is not None:
            return converted
        for scalar in _SCALARS:
            if isinstance(value, scalar):
                plain = scalar(value)  # type: ignore[arg-type]
                _check_scalar(plain, path)
                return plain
        raise StateError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a snapshot "
            "cannot keep. Use None, bool, int, float, str, bytes, list, tuple, set, dict or "
            "tensors."
        )

    def _convert_container(self, value: Any, path: str, parents: tuple[int, ...]) -> Any:
        if isinstance(value, Mapping):
            return {
                self._convert_key(key, path, parents): self.convert(item, f"{path}.{key}", parents)
                for key, item in value.items()
            }
        items = [self.convert(item, f"{path}[{i}]", parents) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(items)
        if not isinstance(value, (set, frozenset)):
            return items
        if any(map(_holds_tensor, items)):
            raise StateError(f"{path} is a set that holds tensors. Use a list of them.")
        try:
            return set(items)
        except TypeError:  # a frozenset inside becomes a set, which cannot be in a set
            raise StateError(f"{path} is a set that holds sets. Use a list of lists.") from None

    def _convert_key(self, key: object, path: str, parents: tuple[int, ...]) -> Any:
        plain = self.convert(key, f"{path}: the key {key!r}", parents)
        try:
            hash(plain)
        except TypeError:
            plain = ...
        if not isinstance(plain, (*_SCALARS, tuple, type(None))) or _holds_tensor(plain):
            raise StateError(f"{path}: the key {key!r} is a {type(key).__name__}. Use str or int.")
        return plain

    def _convert_array(self, value: object, path: str) -> Any:
        """Tensors and numpy values; None where `value` is neither, or has no plain counterpart. If
        it is one, its library is imported.
        """
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            plain = _as_plain_tensor(value, path, torch)
            return plain.clone() if self._copy_tensors else plain
        if numpy is not None and isinstance(value, numpy.generic):
            item = value.item()
            return item if type(item) in _SCALARS else None
        if torch is not None and numpy is not None and isinstance(value, numpy.ndarray):
            try:
                return torch.tensor(value.copy())
            except (TypeError, ValueError) as error:
                raise StateError(f"{path} is an array of {value.dtype}: {error}") from error
        return None


def _holds_tensor(value: object) -> bool:
    """Whether there is a tensor where nobody looks for one: whoever copies a state, or gathers or
    moves its tensors, passes over sets and keys.
    """
    torch = sys.modules.get("torch")
    if isinstance(value, tuple):
        return any(map(_holds_tensor, value))
    return torch is not None and isinstance(value, torch.Tensor)


def _check_scalar(value: object, path: str) -> None:
    """Refuses the few that torch.load cannot read back."""
    if isinstance(value, bytes) and not value:
        raise StateError(f"{path} is b'', which torch.load cannot read back. Keep None or ''.")
    if isinstance(value, int) and value.bit_length() >= _MOST_BITS:
        raise StateError(
            f"{path} is an integer of {value.bit_length()} bits, which torch.load cannot read "
            "back. Keep it as a str."
        )


def _as_plain_tensor(value: Any, path: str, torch: Any) -> Any:
    """Returns a `torch.Tensor` with the values of `value`, in the same memory."""
    if is_sharded(value):
        return value.detach()
    with torch._C.DisableTorchFunctionSubclass():  # a subclass has its say in each call
        for obstacle in _find_obstacles(value, torch):
            raise StateError(f"{path} is {obstacle}, which a snapshot cannot keep.")
        plain = value.detach()
        return plain if type(plain) is torch.Tensor else plain.as_subclass(torch.Tensor)


def _find_obstacles(value: Any, torch: Any) -> Iterator[str]:
    """Yields what `value` is, if its values are not simply there, and what to do instead."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if torch.nn.parameter.is_lazy(value):
        yield "not initialised (run a batch through the model first)"
    if type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        yield f"a {kind}, a tensor made of others (keep those, as plain tensors)"
    if value.is_nested:
        yield "a nested tensor (keep its parts in a list)"
    if value.is_meta:
        yield "a meta tensor, which has no values (move it to a device: to_empty, then load it)"
    if value.layout == torch._mkldnn:
        yield "an MKL-DNN tensor (keep its to_dense())"
    if value.is_quantized and value.qscheme() != torch.per_tensor_affine:
        yield "quantised per channel (keep its int_repr(), scales and zero points)"
    if not value.is_quantized and not _can_be_read_back(value.dtype):
        yield f"a tensor of {value.dtype} (view it as torch.uint8)"


@cache
def _can_be_read_back(dtype: Any) -> bool:
    torch: Any = sys.modules["torch"]
    file = io.BytesIO()
    try:
        torch.save(torch.empty(0, dtype=dtype), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # each of them has its own
        return False
    return True
