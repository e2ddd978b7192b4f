"""The errors of the plugin system.

`UsageError` is the root of everything that is refused before the first step: a command prints it on
a line or two and exits 2. What goes wrong while training runs is a `CallbackError`.
"""

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "CallbackError",
    "OptionError",
    "PluginError",
    "ResumeError",
    "RunError",
    "SaveError",
    "SnapshotError",
    "StateError",
    "UsageError",
    "closest",
    "show",
    "text_of",
]


class UsageError(Exception):
    """Something was refused before the first step; the message says what, with which values, and
    what to do.
    """


class OptionError(UsageError, ValueError):
    """An option of a callback is out of its range, of another type, or does not fit the run."""


class PluginError(UsageError):
    """A plugin or callback cannot be used: import, constructor, hook names, arguments, identity."""


class StateError(ValueError):
    """A callback's state holds a value that a snapshot cannot keep; the message has the path to
    it.
    """


class SnapshotError(Exception):
    """A snapshot (or a file of weights) cannot be written, found, or trusted; the message names the
    file.
    """


class ResumeError(SnapshotError, UsageError):
    """A snapshot was refused before the first step: it is damaged, or does not fit this run."""


class RunError(RuntimeError):
    """A run could not go on, through no fault of the code: a command prints the message, without a
    traceback, and exits 1.
    """


class SaveError(SnapshotError, RunError):
    """A run ended because it could not write."""


class CallbackError(RuntimeError):
    """A callback failed in a hook.

    The message names plugin, distribution, version and hook; `__cause__` is the original exception.
    """


def text_of(error: BaseException) -> str:
    """Returns the text of `error`, also where its own `__str__` fails: whose error it is must not
    be lost over that.
    """
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        return f"<its text cannot be had: {type(failure).__name__}>"


def show(value: object) -> str:
    """Returns `value` for a message, in at most 80 characters, also where its `__repr__` fails."""
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def closest(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest of `names`, or an empty string."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    matches = difflib.get_close_matches(snake, list(names), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
