"""Type hints of a constructor -> how to read their values from the words of a command line."""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

__all__ = ["Reader", "find_reader", "read_hints", "show", "to_bool"]

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_WIDEST: Final = 200
"""Characters of one value that are shown."""

_SEQUENCES: Final = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)


@dataclass(frozen=True)
class Reader:
    """How values of a type are read.

    Attributes:
        convert: one word -> one value; raises ValueError or argparse.ArgumentTypeError.
        metavar: how one word is called in the help.
        choices: the admitted values, or None.
        container: what the values are put in where there are several, else None.
        count: how many there must be; None for any number.
        is_switch: True and False are among its values, so the word may be left out.
    """

    convert: Callable[[str], Any]
    metavar: str
    choices: tuple[Any, ...] | None = None
    container: type | None = None
    count: int | None = None
    is_switch: bool = False


def read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns parameter name -> type. One that cannot be evaluated here (its name is imported for
    type checkers only) stays the text that it is.
    """
    try:
        return typing.get_type_hints(function)  # `Annotated` is taken off here
    except Exception:  # whatever the evaluation of somebody's annotation raises
        names = getattr(inspect.unwrap(function), "__globals__", {})
        return {
            name: _evaluate(annotation, names)
            for name, annotation in inspect.get_annotations(function).items()
        }


def find_reader(hint: Any) -> Reader | None:
    """Returns how to read a `hint`, or None for a type that words cannot give."""
    while isinstance(hint, typing.NewType) or type(hint).__name__ == "TypeAliasType":
        hint = hint.__supertype__ if isinstance(hint, typing.NewType) else hint.__value__
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _find_optional(arguments)
    if origin is Literal:
        words = {show(choice): choice for choice in arguments}
        return _choose({**words, **{str(choice): choice for choice in arguments}}, arguments)
    if origin in _SEQUENCES and arguments:
        return _find_repeated(origin, arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        names = {str(member.value): member for member in hint}
        names.update({member.name: member for member in hint})
        return _choose(names, tuple(hint))
    return _SCALARS.get(hint) if isinstance(hint, type) else None


def show(value: object) -> str:
    """Returns `value` as somebody would write it on the command line."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(show(item) for item in value) or "none"
    try:
        text = " ".join(str(value).split())
    except Exception:  # of somebody's own class
        return f"a {type(value).__name__}"
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]} ..."


def to_bool(text: str) -> bool:
    """Reads `true`, `yes`, `on`, `1` and their opposites."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


_SCALARS: Final[Mapping[type, Reader]] = {
    int: Reader(int, "N"),
    float: Reader(float, "X"),
    str: Reader(str, "TEXT"),
    Path: Reader(Path, "PATH"),
    bool: Reader(to_bool, "BOOL", is_switch=True),
}


def _evaluate(annotation: Any, names: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names)["it"]
    except Exception:  # as above
        return annotation


def _find_optional(arguments: tuple[Any, ...]) -> Reader | None:
    inner = [argument for argument in arguments if argument is not type(None)]
    reader = find_reader(inner[0]) if len(inner) == 1 else None
    if {*inner} == {int, float}:
        reader = Reader(number, "N")
    if reader is None or len(inner) == len(arguments):
        return reader
    convert = reader.convert

    def optional(text: str) -> Any:
        return None if text.lower() == "none" else convert(text)

    optional.__name__ = getattr(convert, "__name__", "value")  # argparse names it in its messages
    return replace(reader, convert=optional)


def _find_repeated(origin: Any, arguments: tuple[Any, ...]) -> Reader | None:
    several = arguments[:-1] if arguments[-1] is Ellipsis else arguments
    reader = find_reader(several[0])
    if reader is None or reader.container is not None or len(set(several)) > 1:
        return None
    container = origin if origin in (list, set, frozenset) else tuple
    fixed = origin is tuple and arguments[-1] is not Ellipsis
    return replace(
        reader, container=container, count=len(several) if fixed else None, is_switch=False
    )


def _choose(words: Mapping[str, Any], choices: tuple[Any, ...]) -> Reader:
    is_switch = any(each is True for each in choices) and any(each is False for each in choices)

    def choice(text: str) -> Any:
        if is_switch and text not in words and text.lower() in _TRUE + _FALSE:
            return to_bool(text)
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return words[text]

    metavar = "{" + ",".join(map(show, choices)) + "}"
    return Reader(choice, metavar, choices, is_switch=is_switch)
