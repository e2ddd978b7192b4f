"""Whether the values that a constructor was given are of the types that its signature says.

Python checks none of that: the string "no" is true.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Final, Literal

from .errors import OptionError
from .hints import read_hints
from .wording import option_text

__all__ = ["check_types"]

_SEQUENCES: Final = (list, tuple, collections.abc.Sequence)

_SCALARS: Final[dict[Any, tuple[type, str]]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    types.NoneType: (types.NoneType, "None"),
}


def check_types(cls: type, values: Mapping[str, object], prefix: str) -> None:
    """Refuses a value that is not of the type of its parameter. Known are bool, int, float (also
    of numpy; NaN is no number), str, None, Literal, unions and sequences of these; a parameter of
    another type may be anything.

    Args:
        cls: whose constructor has the parameters.
        values: parameter -> value: its `locals()`.
        prefix: of its flags, without dashes.

    Raises:
        OptionError: it names the parameter and a value that would do.
    """
    constructor = inspect.getattr_static(cls, "__init__")
    hints = read_hints(constructor)
    for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
        hint, value = hints.get(parameter.name), values[parameter.name]
        if not _accepts(hint, value):
            name, default = parameter.name, parameter.default
            raise OptionError(
                f"{cls.__name__}: {name} must be {_describe(hint)}, got {value!r}. Use "
                f"{option_text(name, default, prefix)}, which is the default."
            )


def _accepts(hint: Any, value: object) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(each, value) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in _SEQUENCES:
        several = isinstance(value, collections.abc.Sequence)
        return several and all(_accepts(arguments[0], item) for item in typing.cast(Any, value))
    if hint not in _SCALARS:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, _SCALARS[hint][0]) and not (
        isinstance(value, float) and math.isnan(value)
    )


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # Python 3.10 gives an equal union that it has seen before, in the order of that one.
        none_last = sorted(arguments, key=lambda each: each is types.NoneType)
        return " or ".join(_describe(each) for each in none_last)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in _SEQUENCES:
        return f"a list, and each item {_describe(arguments[0])}"
    return _SCALARS[hint][1]
