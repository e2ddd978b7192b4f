"""Of which range a value is, and the sentence for one that is not."""

from __future__ import annotations

import inspect
import math
from typing import TypeGuard

from .errors import OptionError
from .wording import option_text

__all__ = ["is_count", "is_positive", "option_error", "takes"]


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether `value` is an int of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number above 0; True and False are none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value > 0


def takes(function: object, count: int) -> bool:
    """Whether `function` can be called with `count` arguments by position; one without a signature
    is believed to.
    """
    try:
        inspect.signature(function).bind(*[None] * count)  # type: ignore[arg-type]
    except TypeError:
        return False
    except ValueError:
        pass
    return True


def option_error(
    who: str,
    prefix: str,
    name: str,
    wanted: str,
    value: object,
    *,
    use: object,
    effect: str = "",
) -> OptionError:
    """Returns the refusal of an option's value, with one that would do.

    Args:
        who: the class.
        prefix: of its flags.
        name: of the option, as the constructor has it.
        wanted: what it must be, such as `at least 1`.
        use: a value that would do.
        effect: what that one does.
    """
    return OptionError(
        f"{who}: {name} must be {wanted}, got {value!r}. "
        f"Use {f'{option_text(name, use, prefix)} {effect}'.rstrip()}."
    )
