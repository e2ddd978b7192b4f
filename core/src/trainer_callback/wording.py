"""How a message names an option: as an argument in code, as a flag where a command runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from .hints import show

__all__ = ["flags_spoken", "option_text"]

_NO_VALUE: Final = object()
_commands: list[str] = []


@contextlib.contextmanager
def flags_spoken() -> Iterator[None]:
    """While it is open, messages speak of flags: a command has been called, and not a class."""
    _commands.append("open")
    try:
        yield
    finally:
        _commands.pop()


def option_text(name: str, value: Any = _NO_VALUE, prefix: str = "") -> str:
    """Returns an option as whoever reads the message can give it: `patience=1` in code,
    `--early_stop_patience 1` where a command runs.

    Args:
        name: of the constructor's parameter.
        value: what would work; left out, the name alone is returned.
        prefix: what a flag has before the name, as `option_prefix` of a callback.
    """
    if not _commands:
        return name if value is _NO_VALUE else f"{name}={value!r}"
    flag = f"{prefix}{name}"
    if value is _NO_VALUE or value is True:
        return f"--{flag}"
    return f"--no_{flag}" if value is False else f"--{flag} {show(value)}"
