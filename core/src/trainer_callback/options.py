"""A constructor's signature -> command-line options -> keyword arguments. Serves callbacks and
configurations alike.
"""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

from .errors import PluginError
from .hookspecs import OptionParser
from .implementation import describe

__all__ = ["Option", "add_flag", "add_options", "collect_options", "read_options"]

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """One constructor parameter as an option.

    Attributes:
        parameter: its name in the signature.
        flag: its name on the command line, without dashes.
        convert: text -> value; raises ValueError.
        default: the signature's default; `inspect.Parameter.empty` where there is none.
        choices: the admitted values, or None.
        repeated: takes any number of values (a list or tuple parameter).
        help: the parameter's line in the docstring's `Args:`.
    """

    parameter: str
    flag: str
    convert: Callable[[str], Any]
    default: Any
    choices: tuple[Any, ...] | None
    repeated: bool
    help: str

    @property
    def required(self) -> bool:
        """Whether the constructor cannot do without it."""
        return self.default is inspect.Parameter.empty


def read_options(target: type, prefix: str = "", skip: Collection[str] = ()) -> list[Option]:
    """Returns the options that `target`'s constructor offers.

    Parameter types that a command line can give: int, float, str, bool, Path, Literal, Enum, each
    `| None`, and lists and tuples of
    them; without annotation the default's type, else str. A parameter of another type is left out
    where it has a default.

    Args:
        target: a class; its docstring's (or its constructor's) `Args:` gives the help.
        prefix: put before each parameter's name.
        skip: parameters that are no options.

    Raises:
        PluginError: a parameter without default has a type that a command line cannot give.
    """
    hints = _read_hints(target)
    helps = _read_help(target)
    found = []
    constructor = inspect.signature(getattr(target, "__init__"))  # noqa: B009
    for parameter in list(constructor.parameters.values())[1:]:
        if parameter.name in skip or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        hint = hints.get(parameter.name, _guess_hint(parameter.default))
        parsed = _parse_hint(hint)
        if parsed is None:
            if parameter.default is parameter.empty:
                raise PluginError(
                    f"{describe(target)}: the parameter {parameter.name!r} is a {hint}, which no "
                    "command line can give. Give it a default, or implement make_callbacks."
                )
            continue
        convert, choices, repeated = parsed
        found.append(
            Option(
                parameter.name,
                prefix + parameter.name,
                convert,
                parameter.default,
                choices,
                repeated,
                helps.get(parameter.name, ""),
            )
        )
    return found


def add_options(parser: OptionParser, options: Collection[Option]) -> None:
    """Adds `--FLAG` for each option. What is not given is not in the namespace: defaults stay the
    constructor's own.
    """
    for option in options:
        if option.convert is _to_bool:
            add_flag(parser, option.flag, _help(option))
            continue
        parser.add_argument(
            f"--{option.flag}",
            dest=option.flag,
            type=option.convert,
            default=argparse.SUPPRESS,
            help=_help(option),
            metavar=_metavar(option),
            **({"nargs": "*"} if option.repeated else {}),
        )


def add_flag(parser: OptionParser, flag: str, help: str) -> None:
    """Adds a switch: `--FLAG`, `--FLAG true`, `--FLAG false` and `--no_FLAG`."""
    parser.add_argument(
        f"--{flag}",
        dest=flag,
        type=_to_bool,
        nargs="?",
        const=True,
        default=argparse.SUPPRESS,
        metavar="BOOL",
        help=help,
    )
    parser.add_argument(
        f"--no_{flag}",
        dest=flag,
        action="store_const",
        const=False,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def collect_options(namespace: object, options: Collection[Option]) -> dict[str, Any]:
    """Returns the constructor's keyword arguments that the command line gave."""
    given = vars(namespace)
    arguments = {o.parameter: given[o.flag] for o in options if o.flag in given}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }


def _read_hints(target: type) -> Mapping[str, Any]:
    constructor = getattr(target, "__init__")  # noqa: B009  the signature of the class, not of an instance
    try:
        return typing.get_type_hints(constructor)
    except (NameError, TypeError):  # names imported under TYPE_CHECKING only
        return {}


def _read_help(target: type) -> dict[str, str]:
    import docstring_parser  # costs 10 ms, and only a command line needs it

    texts = [inspect.getdoc(getattr(target, "__init__")), target.__doc__]  # noqa: B009
    helps: dict[str, str] = {}
    for text in texts:
        for parameter in docstring_parser.parse(inspect.cleandoc(text or "")).params:
            helps[parameter.arg_name] = " ".join((parameter.description or "").split())
    return helps


def _guess_hint(default: object) -> Any:
    return str if default in (None, inspect.Parameter.empty) else type(default)


def _parse_hint(hint: Any) -> tuple[Callable[[str], Any], tuple[Any, ...] | None, bool] | None:
    """Returns how to convert one value, the choices, and whether there may be many; None for a type
    that text cannot give.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        parsed = _parse_hint(inner[0]) if len(inner) == 1 else None
        return (_or_none(parsed[0]), parsed[1], parsed[2]) if parsed else None
    if origin is Literal:
        return _one_of({str(choice): choice for choice in arguments}), arguments, False
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of({member.name: member for member in hint}), tuple(hint), False
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])) and arguments:
        parsed = _parse_hint(arguments[0])
        return (parsed[0], parsed[1], True) if parsed and not parsed[2] else None
    if hint is bool:
        return _to_bool, None, False
    return (hint, None, False) if hint in (int, float, str, Path) else None


def _to_bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def optional(text: str) -> Any:
        return None if text.lower() == "none" else convert(text)

    optional.__name__ = getattr(convert, "__name__", "value")
    return optional


def _one_of(choices: dict[str, Any]) -> Callable[[str], Any]:
    def choose(text: str) -> Any:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return choices[text]

    return choose


def _help(option: Option) -> str:
    end = "required" if option.required else f"default: {_show(option.default)}"
    return f"{option.help} ({end})".strip().replace("%", "%%")


def _metavar(option: Option) -> str:
    if option.choices is not None:
        return "{" + ",".join(_show(choice) for choice in option.choices) + "}"
    name = getattr(option.convert, "__name__", "value")
    return {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}.get(name, "VALUE")


def _show(value: object) -> str:
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return str(value)
