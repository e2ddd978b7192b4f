"""Methods of objects that do something more for a while, and are put back."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

__all__ = ["WrappedMethods", "ZeroGrad"]


class WrappedMethods:
    """Puts functions over methods of instances, and takes them away again."""

    def __init__(self) -> None:
        """Has none yet."""
        self._put: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Puts `make(original)` over the method `name` of `owner`."""
        own = vars(owner).get(name)
        function = make(getattr(owner, name))
        setattr(owner, name, function)
        self._put.append((owner, name, own, function))

    def restore(self) -> None:
        """Puts back what was there; what somebody else has put over it since stays."""
        while self._put:
            owner, name, own, function = self._put.pop()
            if vars(owner).get(name) is not function:
                continue
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


class ZeroGrad:
    """`zero_grad` of a model that calls something first. A copy of the model has a plain one."""

    def __init__(self, model: nn.Module, original: Callable[..., None], before: Any) -> None:
        """Keeps references."""
        self._model, self._original, self._before = model, original, before

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Calls both."""
        self._before()
        self._original(*arguments, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self._model), self._model)
        return MethodType(type(copy).zero_grad, copy)

    def __reduce__(self) -> Any:
        return getattr, (self._model, "zero_grad")  # of its class: it has no attributes yet
