"""Which attribute of a callback is a hook or a setting, which was meant to be one, and which is its
own.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from functools import partialmethod
from types import FunctionType, MethodType
from typing import Final

from ..errors import PluginError, closest
from ..hookspecs import HOOKS, SPECS, TrainerCallback

__all__ = ["FUNCTIONS", "UnknownHookError", "find_misspelt", "is_near_miss"]

FUNCTIONS: Final = (FunctionType, MethodType, classmethod, staticmethod)
_COMMON: Final = ("on_log_text",)
"""Hooks whose names without `on_` are good names for functions of one's own."""
_SETTINGS: Final = (
    *(name for name, value in vars(TrainerCallback).items() if not isinstance(value, FUNCTIONS)),
    "contract",
)
"""Names of what a class says of itself, such as `critical`."""


class UnknownHookError(PluginError):
    """A callback has a hook that is none of those of the run.

    Attributes:
        hook: its name.
    """

    def __init__(self, where: str, hook: str, hooks: Iterable[str]) -> None:
        super().__init__(
            f"{where}: there is no hook {hook!r}.{closest(hook, hooks)} The hooks are "
            f"{', '.join(hooks)}. A method of your own needs another name, such as one that begins "
            "with an underscore."
        )
        self.where = where
        self.hook = hook


def find_misspelt(plugin: object) -> list[tuple[str, str]]:
    """Returns attributes of a callback's class that are spelt nearly like one that the trainer
    reads, such as `critcal`, each with the right name. One that the constructor has, or beside
    which the class has the right one too, is its own.
    """
    cls = type(plugin)
    own: dict[str, object] = {}
    for base in cls.__mro__[: cls.__mro__.index(TrainerCallback)]:
        own = {**vars(base), **own}
    settings = [name for name in _SETTINGS if not name.startswith("_") and name not in own]
    spellings = {_without_underscores(name): name for name in settings}
    fields = getattr(cls, "__dataclass_fields__", ())
    options = {*inspect.signature(cls).parameters, *fields}
    found = []
    for name, value in own.items():
        is_function = isinstance(value, (*FUNCTIONS, property, partialmethod))
        if is_function or name.startswith("_") or name in options or name in vars(TrainerCallback):
            continue
        spelt = _without_underscores(name)
        for near in difflib.get_close_matches(spelt, spellings, 1, cutoff=0.88):
            found.append((name, spellings[near]))
    return found


def is_near_miss(plugin: object, attribute: str, value: object) -> bool:
    """Whether a name that is no hook was meant as one: nobody would ever call it.

    That is a function that begins with `on_` or `should_` (or `onX`, `shouldX`), has the name of a
    hook without `on_` (`epoch_end`; not `log`, `log_text`, `exception`), or is spelt like a hook
    but for case and underscores or a letter or two. Where the class has that hook too, the function
    is one of its own.

    Options that are called like hooks (`self.on_nonfinite = "warn"`, a dataclass field `on_best`)
    are none, unless they can be called and are spelt like a hook.
    """
    if attribute.startswith("_") or attribute in vars(TrainerCallback):
        return False
    options = set(getattr(plugin, "__dataclass_fields__", ()))
    if not isinstance(plugin, type):
        options.update(getattr(plugin, "__dict__", ()))
    is_function = isinstance(value, FUNCTIONS) and attribute not in options
    if is_function and re.match(r"(on|should)(_|[A-Z])", attribute):
        return True
    if not (callable(value) or isinstance(value, (*FUNCTIONS, property, partialmethod))):
        return False
    meant = _find_similar_hook(attribute, shortened=is_function)
    if meant is None:
        return False
    own = inspect.getattr_static(plugin, meant)
    return own is None or own is vars(TrainerCallback)[meant]


def _find_similar_hook(attribute: str, *, shortened: bool) -> str | None:
    """Returns the hook that is spelt nearly like `attribute`.

    Args:
        shortened: a hook's name without `on_` counts.
    """
    spelt = _without_underscores(attribute)
    for hook in HOOKS:
        may_be_short = shortened and hook.count("_") > 1 and hook not in _COMMON
        spellings = (spelt, f"on{spelt}") if may_be_short else (spelt,)
        if _without_underscores(hook) in spellings:
            return hook
    if attribute[0].lower() not in "ons":  # what a slip makes of `on_` and `should_`
        return None
    names = [hook for hook in HOOKS if not SPECS[hook].set_up]
    return next(iter(difflib.get_close_matches(attribute.lower(), names, 1, cutoff=0.9)), None)


def _without_underscores(name: str) -> str:
    return name.replace("_", "").lower()
