"""What an object implements of the hooks, and the refusal of what only looks like an
implementation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from .errors import PluginError
from .hookspecs import HOOKS, PROJECT, TrainerCallback

__all__ = [
    "HOOK_ARGUMENTS",
    "SETUP_HOOKS",
    "Implementation",
    "closest",
    "describe",
    "find_implementations",
]

HOOK_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(inspect.signature(getattr(TrainerCallback, name)).parameters)[1:] for name in HOOKS
}
"""Hook name -> the names of its arguments."""

SETUP_HOOKS: Final = ("add_options", "make_callbacks")
"""Hooks of the command line, called plugin by plugin; all others belong to a run."""

_MARK: Final = f"{PROJECT}_impl"
_FUNCTIONS: Final = (FunctionType, MethodType, classmethod, staticmethod)


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

    @property
    def wraps(self) -> bool:
        """Whether it stands around the others, in pluggy's new style or its old one."""
        return bool(self.options.get("wrapper") or self.options.get("hookwrapper"))


def find_implementations(plugin: object) -> list[Implementation]:
    """Returns what `plugin` (a callback, a `TrainerCallback` subclass, a module, an object)
    implements, in the order of the hooks.

    Raises:
        PluginError: a name that is no hook, an argument that the hook has not, a coroutine or
            generator, or no hook at all in something that is not a `TrainerCallback`.
    """
    is_callback = _is_callback(plugin)
    found = []
    for attribute, value in _attributes(plugin):
        options = _read_mark(value)
        if options is None and not (is_callback and _overrides(plugin, attribute, value)):
            continue
        name = (options or {}).get("specname") or attribute
        _check_name(plugin, attribute, name)
        implementation = Implementation(name, attribute, dict(options or {}))
        _check_function(plugin, implementation, value)
        found.append(implementation)
    if not found and not is_callback:
        raise PluginError(f"{describe(plugin)} has no hooks. {_advise(plugin)}")
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


def _advise(plugin: object) -> str:
    classes = [
        name
        for name, value in (vars(plugin) if isinstance(plugin, ModuleType) else {}).items()
        if isinstance(value, type) and value is not TrainerCallback and _is_callback(value)
    ]
    if classes:
        return f"Name its class: {describe(plugin)}:{classes[0]}."
    return "Subclass TrainerCallback, or mark its functions with @trainer_callback.hookimpl."


def _attributes(plugin: object) -> Iterator[tuple[str, object]]:
    """Yields what is there without running properties or `__getattr__` (which may do anything)."""
    for name in dir(plugin):
        if not name.startswith("__"):
            yield name, inspect.getattr_static(plugin, name, None)


def _read_mark(value: object) -> dict[str, Any] | None:
    """Returns the options of `@hookimpl`, which may stand above or below `@classmethod`."""
    for marked in (value, getattr(value, "__func__", None)):
        options = vars(marked).get(_MARK) if hasattr(marked, "__dict__") else None
        if isinstance(options, dict):
            return options
    return None


def _overrides(plugin: object, attribute: str, value: object) -> bool:
    """Whether an unmarked attribute of a `TrainerCallback` is, or looks like, a hook.

    Options that are called like hooks (`self.on_nonfinite = "warn"`, a dataclass field `on_best`)
    are none; nor is a hook that a subclass takes back with None.
    """
    if attribute in HOOKS:
        return value is not None and value is not vars(TrainerCallback)[attribute]
    if not attribute.startswith(("on_", "should_")):
        return False
    options = set(getattr(plugin, "__dataclass_fields__", ()))
    if not isinstance(plugin, type):
        options.update(getattr(plugin, "__dict__", ()))
    return attribute not in options and _is_function(value)


def _is_function(value: object) -> bool:
    return isinstance(value, _FUNCTIONS)


def _check_name(plugin: object, attribute: str, name: str) -> None:
    if name not in HOOKS:
        raise PluginError(
            f"{describe(plugin)}.{attribute}: there is no hook {name!r}."
            f"{closest(name, HOOKS)} The hooks are {', '.join(HOOKS)}."
        )


def _check_function(plugin: object, implementation: Implementation, static: object) -> None:
    where = f"{describe(plugin)}.{implementation.attribute}"
    if not _is_function(static):
        raise PluginError(
            f"{where} is a {type(static).__name__}, where a hook is a function. Write "
            f"`def {implementation.attribute}`, or give the attribute another name."
        )
    function = getattr(plugin, implementation.attribute)
    _check_kind(where, implementation, function)
    is_unbound = isinstance(plugin, type) and isinstance(static, FunctionType)
    if is_unbound and implementation.hook in SETUP_HOOKS:
        raise PluginError(
            f"{where} is called before there is an instance. Put @classmethod above it."
        )
    is_method = inspect.ismethod(function)
    signed = function.__func__ if is_method else function
    _check_arguments(where, implementation.hook, signed, takes_self=is_method or is_unbound)


def _check_kind(where: str, implementation: Implementation, function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{where} is a coroutine function: nobody would await it. Write `def`.")
    is_generator = inspect.isgeneratorfunction(function)
    if is_generator and not implementation.wraps:
        raise PluginError(
            f"{where} is a generator: its body would never run. Remove `yield`, or mark it with "
            "@hookimpl(wrapper=True)."
        )
    if not implementation.wraps:
        return
    if not is_generator:
        raise PluginError(
            f"{where} is marked as a wrapper and has no `yield`, which is where the others run."
        )
    if implementation.hook in SETUP_HOOKS:
        raise PluginError(f"{where} cannot be a wrapper: each plugin is called by itself.")
    if implementation.options.get("wrapper") and implementation.options.get("hookwrapper"):
        raise PluginError(f"{where} is marked wrapper and hookwrapper. Write wrapper=True only.")


def _check_arguments(
    where: str, hook: str, function: Callable[..., Any], *, takes_self: bool
) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    known = HOOK_ARGUMENTS[hook]
    if takes_self:
        if not parameters or parameters[0].name in known:
            raise PluginError(f"{where} has no `self`. Write it as its first argument.")
        parameters = parameters[1:]
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
