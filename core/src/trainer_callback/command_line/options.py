"""A constructor's signature -> command-line options -> keyword arguments. Serves callbacks and
configurations alike.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..calls.implementation import describe
from ..errors import PluginError
from ..hints import Reader, find_reader, read_hints, show, to_bool
from ..specs import OptionParser

__all__ = [
    "Option",
    "add_flag",
    "add_options",
    "build",
    "collect_options",
    "read_options",
    "read_prefix",
]

_PREFIX: Final = re.compile(r"([^\W_][\w-]*)?")


@dataclass(frozen=True)
class Option:
    """One constructor parameter as an option.

    Attributes:
        parameter: its name in the signature.
        flag: its name on the command line, without dashes.
        reader: how its values are read from words.
        default: the signature's default; `inspect.Parameter.empty` where there is none.
        help: the parameter's line in the docstring's `Args:`.
    """

    parameter: str
    flag: str
    reader: Reader
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether the constructor cannot do without it."""
        return self.default is inspect.Parameter.empty


def read_options(
    target: type, prefix: str = "", skip: Collection[str] = (), *, may_lack: bool = False
) -> list[Option]:
    """Returns the options that `target`'s constructor offers.

    Parameter types that a command line can give: int, float, str, bool, Path, Literal, Enum, each
    `| None`, and lists, sets and tuples of them; without annotation the default's type, else str. A
    parameter of another type is left out where it has a default.

    Args:
        target: a class; its docstring's (or its constructor's) `Args:` gives the help.
        prefix: put before each parameter's name.
        skip: parameters that are no options.
        may_lack: a parameter without default may have a type that a command line cannot give.

    Raises:
        PluginError: a parameter without default has such a type.
    """
    constructor = _constructor(target)
    hints = read_hints(constructor)
    helps = _read_help(target)
    found = []
    for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
        if parameter.name in skip or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        hint = hints.get(parameter.name, _guess_hint(parameter.default))
        reader = find_reader(hint)
        if reader is not None:
            name, default = parameter.name, parameter.default
            found.append(Option(name, prefix + name, reader, default, helps.get(name, "")))
        elif parameter.default is parameter.empty and not may_lack:
            raise PluginError(
                f"{describe(target)}: the parameter {parameter.name!r} is a {_name(hint)}, which "
                "no command line can give. Give it a default, or implement make_callbacks."
            )
    return found


def read_prefix(target: object, name: str) -> str:
    """Returns what the flags of `target` begin with, whose plugin is called `name`.

    Raises:
        PluginError: its own `option_prefix` is no beginning of a flag.
    """
    own = getattr(target, "option_prefix", None)
    if own is None:
        return f"{name}_"
    if not isinstance(own, str) or not _PREFIX.fullmatch(own):
        raise PluginError(
            f"option_prefix of {describe(target)} must be text of letters, digits and underscores "
            f"such as 'warm_', got {own!r}. Leave it out for the entry point's name."
        )
    return own.replace("-", "_")


def add_options(parser: OptionParser, options: Collection[Option]) -> None:
    """Adds `--FLAG` for each option. What is not given is not in the namespace: defaults stay the
    constructor's own.
    """
    for option in options:
        reader = option.reader
        if reader.is_switch:
            add_flag(parser, option.flag, _help(option), reader.convert, reader.metavar)
            continue
        several: dict[str, Any] = {}
        if reader.container is not None:
            several["nargs"] = "*" if reader.count is None else reader.count
        parser.add_argument(
            f"--{option.flag}",
            dest=option.flag,
            type=reader.convert,
            default=argparse.SUPPRESS,
            help=_help(option),
            metavar=reader.metavar,
            **several,
        )


def add_flag(
    parser: OptionParser,
    flag: str,
    help: str,
    convert: Callable[[str], Any] = to_bool,
    metavar: str = "BOOL",
) -> None:
    """Adds a switch: `--FLAG`, `--FLAG true`, `--FLAG false` and `--no_FLAG`."""
    parser.add_argument(
        f"--{flag}",
        dest=flag,
        type=convert,
        nargs="?",
        const=True,
        default=argparse.SUPPRESS,
        metavar=metavar,
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
    return {o.parameter: _pack(given[o.flag], o.reader) for o in options if o.flag in given}


def build(target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Returns `target(**arguments)`, where positional-only parameters are given by position."""
    named, positional = dict(arguments), []
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # of a metaclass's making: it says itself what it takes
        return target(**named)
    only = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    while only and only[-1].name not in named:
        only.pop()
    for parameter in only:
        positional.append(named.pop(parameter.name, parameter.default))
    return target(*positional, **named)


def _pack(value: Any, reader: Reader) -> Any:
    if reader.container is None or not isinstance(value, list):
        return value
    return None if value == [None] else reader.container(value)


def _constructor(target: type) -> Callable[..., Any]:
    """Returns `__init__` as the class has it, not as an instance sees it."""
    found: Callable[..., Any] = inspect.getattr_static(target, "__init__")
    return found


def _read_help(target: type) -> dict[str, str]:
    import docstring_parser  # costs 10 ms, and only a command line needs it

    helps: dict[str, str] = {}
    for raw in (inspect.getdoc(_constructor(target)), target.__doc__):
        text, found = inspect.cleandoc(raw or ""), []
        with contextlib.suppress(docstring_parser.ParseError):
            found = docstring_parser.google.parse(text).params
        for parameter in found or docstring_parser.parse(text).params:  # tries all styles
            helps[parameter.arg_name] = " ".join((parameter.description or "").split())
    return helps


def _guess_hint(default: object) -> Any:
    if default is None or default is inspect.Parameter.empty:
        return str
    if isinstance(default, (list, tuple, set)) and len({type(item) for item in default}) == 1:
        container: Any = type(default)
        item = _guess_hint(next(iter(default)))
        return container[item, ...] if container is tuple else container[item]
    return type(default)


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _help(option: Option) -> str:
    end = "required" if option.required else f"default: {show(option.default)}"
    return f"{option.help} ({end})".strip().replace("%", "%%")
