"""Hooks that plugins bring, beside the trainer's own: read from their classes, joined for a run,
and called as `trainer.hook.on_x(...)`.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

from ..errors import PluginError, closest
from ..hookspecs import HOOKS, SPECS
from ..specs import PROJECT, HookSpec, read_spec
from ..wording import option_text
from .identity import Plugin
from .implementation import Implementation, brings_hooks
from .naming import UnknownHookError

__all__ = [
    "ExtensionHooks",
    "explain_absent",
    "join_hooks",
    "merge_hooks",
    "read_hooks",
    "warn_deprecated",
]

_NAME: Final = re.compile(r"(on|should)_[a-z0-9_]+")

_MOST_ARGUMENTS: Final = 6
"""For so many `dispatch` is written out."""


class ExtensionHooks:
    """The hooks of the plugins of a run, as attributes: `on_x(trainer=..., ...)` calls everybody
    who implements `on_x`, and returns the answers but for None, in the order of the calls.
    """

    def __init__(self, specs: Iterable[HookSpec], calls: object) -> None:
        """Makes those of `specs`. `calls` has what calls the implementations under the hook's name,
        while there are some.
        """
        for spec in specs:
            setattr(self, spec.name, _make_call(spec, calls))

    def __getattr__(self, name: str) -> Any:
        """Says what there is.

        Raises:
            AttributeError: always.
        """
        if name in HOOKS:
            raise AttributeError(
                f"{name} is called by the trainer itself. trainer.hook has the hooks that plugins "
                f"bring: {', '.join(vars(self)) or 'none'}."
            )
        raise AttributeError(
            f"no plugin of this run brings a hook {name!r}.{closest(name, vars(self))} There are "
            f"{', '.join(vars(self)) or 'none'}."
        )


def _make_call(spec: HookSpec, calls: object) -> Callable[..., list[Any]]:
    expected = set(spec.arguments)

    def call(**given: Any) -> list[Any]:
        if given.keys() != expected:
            raise TypeError(
                f"trainer.hook.{spec.name} takes {', '.join(spec.arguments) or 'nothing'}, each by "
                f"its name; got {', '.join(given) or 'nothing'}."
            )
        implementations = getattr(calls, spec.name, None)
        answers = None if implementations is None else implementations(**given)
        return [answer for _, answer in answers or ()]

    call.__name__ = call.__qualname__ = spec.name
    return call


def read_hooks(plugin: Plugin) -> dict[str, HookSpec]:
    """Returns the hooks that a plugin brings, by name: the functions of its class `hookspecs`.

    Raises:
        PluginError: one of them could not be called, or is one of the trainer's own.
    """
    if not brings_hooks(plugin.callback):
        return {}
    cls = inspect.getattr_static(plugin.callback, "hookspecs")
    functions = {name: inspect.getattr_static(cls, name) for name in dir(cls) if name[0] != "_"}
    found = {
        name: _read_hook(f"{plugin.label}: {cls.__name__}.{name}", name, function)
        for name, function in functions.items()
        if isinstance(function, (FunctionType, classmethod, staticmethod))
    }
    if not found:
        raise PluginError(
            f"{plugin.label}: {cls.__name__} declares no hook. Write `def on_x(self, trainer): "
            '"""When it is called."""` in it, or leave hookspecs out.'
        )
    return found


def _read_hook(where: str, name: str, function: object) -> HookSpec:
    if not isinstance(function, FunctionType):
        raise PluginError(f"{where} is a {type(function).__name__}. Write `def {name}(self, ...)`.")
    if name in HOOKS:
        raise PluginError(f"{where} is a hook of the trainer itself. Give it another name.")
    if not _NAME.fullmatch(name):
        raise PluginError(
            f"{where} is no name for a hook. Begin with on_ or should_, in small letters: methods "
            "of that kind are never something else in a callback."
        )
    first, *others = inspect.signature(function).parameters.values() or (None,)
    if first is None or first.name != "self":
        raise PluginError(f"{where} has no `self`. Write it as its first argument.")
    for each in others:
        if each.kind is not each.POSITIONAL_OR_KEYWORD or each.default is not each.empty:
            raise PluginError(
                f"{where} has the argument {each.name!r}, which is no plain one. Write the name "
                "alone: whoever calls the hook gives every argument, by its name, and "
                "implementations take those they need."
            )
    if len(others) > _MOST_ARGUMENTS:
        raise PluginError(
            f"{where} has {len(others)} arguments, and a hook has at most {_MOST_ARGUMENTS}. Put "
            "some of them into one object."
        )
    mark = getattr(function, f"{PROJECT}_spec", {})
    for option in ("firstresult", "historic"):
        if mark.get(option):
            raise PluginError(
                f"{where} is marked {option}=True, which is not there: every implementation is "
                "called, once, and the caller gets the list of answers. Leave the mark out."
            )
    return read_spec(function, answers=True)


def join_hooks(plugins: Iterable[Plugin]) -> dict[str, HookSpec]:
    """Returns the hooks of a run by name: the trainer's own, then those that `plugins` bring.

    Raises:
        PluginError: two of them bring a hook of one name.
    """
    owners: dict[str, tuple[Plugin, object]] = {}
    joined = dict(SPECS)
    for plugin in plugins:
        cls = inspect.getattr_static(plugin.callback, "hookspecs", None)
        for name, spec in read_hooks(plugin).items():
            owner, known = owners.setdefault(name, (plugin, cls))
            if known is not cls:
                raise PluginError(
                    f"two plugins bring the hook {name!r}: {owner.label} and {plugin.label}. Leave "
                    "one of them out."
                )
            joined[name] = spec
    return joined


def merge_hooks(plugins: Iterable[Plugin]) -> dict[str, HookSpec]:
    """Returns every hook that there is in any run with some of `plugins`, with all arguments that
    it has in one of them.
    """
    merged = dict(SPECS)
    for plugin in plugins:
        for name, spec in read_hooks(plugin).items():
            known = merged.get(name)
            before = () if known is None else known.arguments
            arguments = tuple(dict.fromkeys((*before, *spec.arguments)))
            merged[name] = HookSpec(name, arguments, answers=True)
    return merged


def explain_absent(
    error: UnknownHookError, bringers: Sequence[Plugin], where: str = "this run"
) -> PluginError:
    """Returns the refusal of an implementation of a hook that is not in `where`, with the plugin to
    add where one of `bringers` has the hook.
    """
    owner = next((each for each in bringers if error.hook in read_hooks(each)), None)
    if owner is None:
        return error
    flag = option_text(owner.name.replace("-", "_"), True)
    way = flag if flag.startswith("--") else f"trainer.plugins.create({owner.name!r})"
    return PluginError(
        f"{error.where}: {error.hook!r} is a hook of {owner.label}, which is not in {where}. Add "
        f"it ({way}), or mark the method with @hookimpl(optionalhook=True), and it is called only "
        "where that plugin is."
    )


def warn_deprecated(plugin: Plugin, implementations: Iterable[Implementation]) -> None:
    """Warns of each deprecated hook, or argument, that `plugin` uses, as if its line had done it:
    what is shown, and how often, is for Python's filters to say.
    """
    for each in implementations:
        for text in _find_deprecated(each.spec, each.asked):
            function: Any = inspect.unwrap(each.function)
            function = getattr(function, "__func__", function)
            code = getattr(function, "__code__", None)
            names = getattr(function, "__globals__", {})
            warnings.warn_explicit(
                f"{plugin.label}: {text}",
                DeprecationWarning,
                filename=getattr(code, "co_filename", "?"),
                lineno=getattr(code, "co_firstlineno", 1),
                module=names.get("__name__"),
                registry=names.setdefault("__warningregistry__", {}),
            )


def _find_deprecated(spec: HookSpec, asked: Sequence[str]) -> Iterator[str]:
    if spec.deprecated:
        yield f"the hook {spec.name} is deprecated: {spec.deprecated}"
    old: Mapping[str, str] = spec.deprecated_arguments
    for name in asked:
        if name in old:
            yield f"the argument {name!r} of {spec.name} is deprecated: {old[name]}"
