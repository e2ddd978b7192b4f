"""What an object implements of the hooks, and the refusal of what only looks like an
implementation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from .errors import PluginError
from .hookspecs import HOOKS, PROJECT, TrainerCallback

__all__ = ["HOOK_ARGUMENTS", "Implementation", "closest", "describe", "find_implementations"]

HOOK_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(inspect.signature(getattr(TrainerCallback, name)).parameters)[1:] for name in HOOKS
}
"""Hook name -> the names of its arguments."""

_MARK: Final = f"{PROJECT}_impl"


@dataclass(frozen=True)
class Implementation:
    """One hook that an object implements.

    Attributes:
        hook: the hook's name.
        attribute: the name under which the object has the function (`specname` may differ).
        options: the pluggy options of `@hookimpl`, or the empty ones of an unmarked override.
    """

    hook: str
    attribute: str
    options: dict[str, Any]


def find_implementations(plugin: object) -> list[Implementation]:
    """Returns what `plugin` (a callback, a `TrainerCallback` subclass, a module, an object)
    implements, in the order of the hooks.

    Raises:
        PluginError: a name that is no hook, an argument that the hook has not, a coroutine or
            generator, or no hook at all in
            something that is not a `TrainerCallback`.
    """
    unmarked = _is_callback(plugin)
    found = []
    for attribute, value in _attributes(plugin):
        options = getattr(value, _MARK, None)
        marked = isinstance(options, dict)
        if not marked and not (unmarked and _looks_like_hook(attribute)):
            continue
        name = (options.get("specname") if isinstance(options, dict) else None) or attribute
        _check_name(plugin, attribute, name)
        if not marked and value is getattr(TrainerCallback, name):
            continue
        implementation = Implementation(name, attribute, dict(options or {}) if marked else {})
        _check_function(plugin, implementation)
        found.append(implementation)
    if not found and not unmarked:
        raise PluginError(
            f"{describe(plugin)} has no hooks. Subclass TrainerCallback, or mark its functions "
            "with "
            "@trainer_callback.hookimpl."
        )
    return sorted(found, key=lambda implementation: HOOKS.index(implementation.hook))


def describe(plugin: object) -> str:
    """Returns the name of a callback, class or module for messages."""
    if isinstance(plugin, (type, ModuleType)):
        return plugin.__name__
    return type(plugin).__name__


def closest(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest of `names`, or an empty string."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _is_callback(plugin: object) -> bool:
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return issubclass(cls, TrainerCallback)


def _looks_like_hook(attribute: str) -> bool:
    return attribute.startswith(("on_", "should_")) or attribute in HOOKS


def _attributes(plugin: object) -> Iterator[tuple[str, Any]]:
    """Yields the functions without running properties (`getattr` on a foreign object may do
    anything).
    """
    for name in dir(plugin):
        if name.startswith("__"):
            continue
        value = inspect.getattr_static(plugin, name)
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if callable(value):
            yield name, value


def _check_name(plugin: object, attribute: str, name: str) -> None:
    if name not in HOOKS:
        raise PluginError(
            f"{describe(plugin)}.{attribute}: there is no hook {name!r}."
            f"{closest(name, HOOKS)} The hooks are {', '.join(HOOKS)}."
        )


def _check_function(plugin: object, implementation: Implementation) -> None:
    function = getattr(plugin, implementation.attribute)
    where = f"{describe(plugin)}.{implementation.attribute}"
    wrapper = implementation.options.get("wrapper") or implementation.options.get("hookwrapper")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{where} is a coroutine function: nobody would await it. Write `def`.")
    if inspect.isgeneratorfunction(function) and not wrapper:
        raise PluginError(
            f"{where} is a generator: its body would never run. Remove `yield`, or mark it with "
            "@hookimpl(wrapper=True)."
        )
    static = inspect.getattr_static(plugin, implementation.attribute)
    takes_self = isinstance(plugin, type) and not isinstance(static, (classmethod, staticmethod))
    _check_arguments(where, implementation.hook, function, 1 if takes_self else 0)


def _check_arguments(where: str, hook: str, function: Callable[..., Any], skip: int) -> None:
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    known = HOOK_ARGUMENTS[hook]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(
                f"{where} takes {parameter}, which hides what it needs. Name the arguments: any of "
                f"{', '.join(known)}."
            )
        if parameter.name not in known:
            raise PluginError(
                f"{where} asks for {parameter.name!r}, which {hook} does not have."
                f"{closest(parameter.name, known)} It has {', '.join(known)}."
            )
