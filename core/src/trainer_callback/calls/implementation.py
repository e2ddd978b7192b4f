"""What an object implements of the hooks, and the refusal of what only looks like an
implementation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any, Final

from ..errors import PluginError, closest
from ..hookspecs import HOOKS, SPECS, TrainerCallback
from ..specs import PROJECT, HookSpec
from .naming import FUNCTIONS, UnknownHookError, find_misspelt, is_near_miss

__all__ = [
    "Implementation",
    "brings_hooks",
    "describe",
    "find_implementations",
    "find_late",
    "find_slips",
    "find_unmarked",
]

_MARK: Final = f"{PROJECT}_impl"


@dataclass(frozen=True)
class Implementation:
    """One hook that an object implements.

    Attributes:
        spec: of the hook.
        attribute: the name under which the object has the function (`specname` may differ).
        options: the pluggy options of `@hookimpl`, or the empty ones of an unmarked override.
        function: what the object has there, bound to it.
    """

    spec: HookSpec
    attribute: str
    options: dict[str, Any]
    function: Callable[..., Any]

    @property
    def hook(self) -> str:
        """The hook's name."""
        return self.spec.name

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The names of the arguments that it asks for, in its order; those that have a default and
        that the hook does not have are not among them.
        """
        parameters = inspect.signature(self.function).parameters
        return tuple(name for name in parameters if name in self.spec.arguments)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The last of them, which are to be given by name."""
        parameters = [*inspect.signature(self.function).parameters.values()]
        left = next((n for n, each in enumerate(parameters) if each.name not in self.asked), None)
        behind = () if left is None else (each.name for each in parameters[left:])
        only = (each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
        by_name = {*behind, *only}
        return tuple(name for name in self.asked if name in by_name)

    def has(self, option: str) -> bool:
        """Whether `@hookimpl` was given `option`: `wrapper`, `tryfirst` or `trylast`."""
        return bool(self.options.get(option))


def find_implementations(
    plugin: object, hooks: Mapping[str, HookSpec] = SPECS
) -> list[Implementation]:
    """Returns what `plugin` (a callback, a `TrainerCallback` subclass, a module, an object)
    implements, in the order of the hooks. What is marked with `optionalhook=True` and is no hook
    here is left out.

    Args:
        hooks: those that there are, by their names.

    Raises:
        UnknownHookError: a name that is no hook.
        PluginError: an argument that the hook has not, a coroutine or generator, or no hook at all
            in something that is not a `TrainerCallback`.
    """
    is_callback = _is_callback(plugin)
    if is_callback:
        _check_hidden(plugin)
        _check_close(plugin)
    found, has_others = [], is_callback or brings_hooks(plugin)
    for attribute, value in _attributes(plugin):
        options = _read_mark(value)
        if options is None and not (is_callback and _overrides(plugin, attribute, value, hooks)):
            continue
        name = (options or {}).get("specname") or attribute
        if name in hooks:
            found.append(_read_function(plugin, attribute, hooks[name], options or {}, value))
        elif (options or {}).get("optionalhook"):
            has_others = True
        else:
            raise UnknownHookError(f"{describe(plugin)}.{attribute}", name, hooks)
    if not found and not has_others:
        raise PluginError(f"{describe(plugin)} has no hooks. {_advise(plugin)}")
    return sorted(found, key=lambda implementation: [*hooks].index(implementation.hook))


def brings_hooks(plugin: object) -> bool:
    """Whether `plugin` has a class `hookspecs`, of hooks of its own."""
    return isinstance(inspect.getattr_static(plugin, "hookspecs", None), type)


def find_late(plugin: object, registered: Mapping[str, object], hooks: Iterable[str]) -> list[str]:
    """Returns a sentence for each of `hooks` that a callback's instance has otherwise than when it
    was `registered`.
    """
    own = vars(plugin) if _is_callback(plugin) and hasattr(plugin, "__dict__") else {}
    return [
        f"{name} was set on the instance after Trainer(...) took its hooks, and has no effect. "
        "Write it as a method, or set it in __init__."
        for name in hooks
        if name in own and own[name] is not registered.get(name)
    ]


def find_slips(plugin: object, hooks: Collection[str]) -> list[str]:
    """Returns a sentence for each thing in `plugin` that has no effect and is mostly a slip: a
    function of a module or object that is called like one of `hooks` and has no `@hookimpl`, and an
    attribute of a callback that is spelt nearly like one which the trainer reads.
    """
    if _is_callback(plugin):
        return [
            f"{describe(plugin)}.{name} has no effect. Did you mean {meant!r}? If it is your own, "
            "give it another name."
            for name, meant in find_misspelt(plugin)
        ]
    return [
        f"{where} is called like a hook and has no @hookimpl, so it is never called. Mark it with "
        "@trainer_callback.hookimpl, or give it another name."
        for where in find_unmarked(plugin, hooks)
    ]


def find_unmarked(plugin: object, hooks: Collection[str]) -> list[str]:
    """Returns those of `hooks` that a module or object of somebody's own defines without
    `@hookimpl`: they are never called.
    """
    if _is_callback(plugin):
        return []
    home = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    return [
        f"{describe(plugin)}.{name}"
        for name, value in _attributes(plugin)
        if name in hooks and isinstance(value, FUNCTIONS) and _read_mark(value) is None
        if getattr(value, "__module__", home) == home  # not what it imports
    ]


def describe(plugin: object) -> str:
    """Returns the name of a callback, class or module for messages."""
    if isinstance(plugin, (type, ModuleType)):
        return plugin.__name__
    return type(plugin).__name__


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


def _overrides(
    plugin: object, attribute: str, value: object, hooks: Mapping[str, HookSpec]
) -> bool:
    """Whether an unmarked attribute of a `TrainerCallback` is a hook, or was meant to be one.

    A hook that a subclass takes back with None is none; and what is no function may well be an
    option which is called like a hook of somebody else.
    """
    if attribute in HOOKS:
        return value is not None and value is not vars(TrainerCallback)[attribute]
    if attribute in hooks and isinstance(value, FUNCTIONS):
        return True
    return is_near_miss(plugin, attribute, value)


def _check_hidden(plugin: object) -> None:
    """Refuses a base class that stands behind `TrainerCallback`, whose own empty methods would then
    hide what it brings.
    """
    cls = plugin if isinstance(plugin, type) else type(plugin)
    own = {name for name in vars(TrainerCallback) if not name.startswith("_")}
    for base in cls.__mro__[cls.__mro__.index(TrainerCallback) + 1 :]:
        for name in own & vars(base).keys():
            first = next(each for each in cls.__mro__ if name in vars(each))
            if first is TrainerCallback and name not in getattr(plugin, "__dict__", ()):
                raise PluginError(
                    f"{base.__name__}.{name} is hidden by TrainerCallback, which stands before it: "
                    f"write class {cls.__name__}({base.__name__}, TrainerCallback)."
                )


def _check_close(plugin: object) -> None:
    where = f"{describe(plugin)}.close"
    close = plugin.close  # type: ignore[attr-defined]
    if not callable(close) or inspect.iscoroutinefunction(close):
        raise PluginError(
            f"{where} is a {type(close).__name__}, and the trainer calls it when a run ends. Write "
            "`def close(self)`, or give it another name."
        )
    is_unbound = isinstance(plugin, type) and isinstance(
        inspect.getattr_static(plugin, "close"), FunctionType
    )
    try:
        inspect.signature(close).bind(*[plugin] * is_unbound)
    except TypeError:
        raise PluginError(
            f"{where} asks for arguments, and the trainer calls it with none when a run ends. "
            "Write `def close(self)`, or give it another name."
        ) from None


def _read_function(
    plugin: object, attribute: str, spec: HookSpec, options: Mapping[str, Any], static: object
) -> Implementation:
    """Returns the implementation of a hook that `plugin` has under `attribute`.

    Raises:
        PluginError: it could not be called as one.
    """
    where = f"{describe(plugin)}.{attribute}"
    if not isinstance(static, FUNCTIONS):
        raise PluginError(
            f"{where} is a {type(static).__name__}, where a hook is a function. Write "
            f"`def {attribute}`, or give the attribute another name."
        )
    implementation = Implementation(spec, attribute, dict(options), getattr(plugin, attribute))
    function: Any = implementation.function
    _check_kind(where, implementation)
    is_unbound = isinstance(plugin, type) and isinstance(static, FunctionType)
    if is_unbound and spec.set_up:
        raise PluginError(
            f"{where} is called before there is an instance. Put @classmethod above it."
        )
    is_method = inspect.ismethod(function)
    signed = function.__func__ if is_method else function
    _check_arguments(where, spec, signed, takes_self=is_method or is_unbound)
    return implementation


def _check_kind(where: str, implementation: Implementation) -> None:
    function = implementation.function
    inner = inspect.unwrap(function)  # what functools.wraps was put around
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise PluginError(f"{where} is a coroutine function: nobody would await it. Write `def`.")
    if implementation.has("hookwrapper"):
        raise PluginError(
            f"{where} is marked hookwrapper=True, pluggy's old style. Write "
            "@hookimpl(wrapper=True): `yield` gives the list of answers, and what is returned is "
            "the result."
        )
    is_wrapper = implementation.has("wrapper")
    if inspect.isgeneratorfunction(inner) and not is_wrapper:
        raise PluginError(
            f"{where} is a generator: its body would never run. Remove `yield`, or mark it with "
            "@hookimpl(wrapper=True)."
        )
    if not is_wrapper:
        return
    if not inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{where} is marked as a wrapper and has no `yield`, which is where the others run."
        )
    if implementation.spec.set_up:
        raise PluginError(f"{where} cannot be a wrapper: each plugin is called by itself.")


def _check_arguments(
    where: str, spec: HookSpec, function: Callable[..., Any], *, takes_self: bool
) -> None:
    signature = inspect.signature(function).parameters
    parameters = list(signature.values())
    known = spec.arguments
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
        if parameter.name not in known and not _may_lack(parameter, signature, known):
            raise PluginError(
                f"{where} asks for {parameter.name!r}, which {spec.name} does not have."
                f"{closest(parameter.name, known)} It has {', '.join(known) or 'none'}."
            )


def _may_lack(
    parameter: inspect.Parameter, asked: Mapping[str, object], known: Sequence[str]
) -> bool:
    """Whether the hook need not have `parameter`: it has a default, for cores of other versions,
    and is no misspelling of an argument that nobody else here asks for.
    """
    free = [name for name in known if name not in asked]
    is_misspelt = difflib.get_close_matches(parameter.name, free, 1, cutoff=0.68)
    is_bare = parameter.kind is parameter.POSITIONAL_ONLY or parameter.default is parameter.empty
    return not is_misspelt and not is_bare
