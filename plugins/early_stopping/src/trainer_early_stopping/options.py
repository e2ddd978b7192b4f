"""What each option may be: a wrong one is refused at construction, with one that would work."""

from __future__ import annotations

import math
from functools import partial
from numbers import Integral, Real
from typing import Final

from trainer_callback import OptionError, option_text
from trainer_callback.checks import option_error

from .decision import Mode, guess_mode

__all__ = [
    "PREFIX",
    "require_count",
    "require_margin",
    "require_mode",
]

PREFIX: Final = "early_stop_"

_refuse = partial(option_error, "EarlyStoppingCallback", PREFIX)


def require_count(name: str, value: object, least: int, effect: str) -> int:
    """Returns `value`, an integer of at least `least`; `effect` is what that one does.

    Raises:
        OptionError: it is smaller, or no integer.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _refuse(name, "an integer", value, use=least, effect=effect)
    if value < least:
        raise _refuse(name, f"at least {least}", value, use=least, effect=effect)
    return int(value)


def require_margin(value: object) -> float:
    """Returns `value` of min_delta, a finite number of at least 0.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf:
        return float(value)
    wanted = "a finite number of at least 0"
    raise _refuse("min_delta", wanted, value, use=0, effect="to count every improvement")


def require_mode(mode: str, monitor: str) -> Mode:
    """Returns the direction in which `monitor` gets better; `auto` reads it off the name.

    Raises:
        OptionError: the name tells none, or both.
    """
    guess: Mode | None = "min" if mode == "min" else "max" if mode == "max" else None
    guess = guess or guess_mode(monitor)
    if guess is None:
        raise OptionError(
            f"EarlyStoppingCallback: the name {monitor!r} does not tell whether lower or higher is "
            f"better. Use {option_text('mode', 'min', PREFIX)} or "
            f"{option_text('mode', 'max', PREFIX)}, unless the name is misspelt."
        )
    return guess
