"""What is true of a hook beside what its method says, and how a hook, or an implementation of one,
is marked. Knows no single hook.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import pluggy

__all__ = ["PROJECT", "HookSpec", "OptionParser", "hookimpl", "hookspec", "read_spec"]

PROJECT: Final = "trainer"

_Copy: TypeAlias = Callable[[Any, str, str], Any]

hookimpl: Final = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a module, or a method that wants `tryfirst`, `trylast`, `wrapper` or
`optionalhook`. Methods of a `TrainerCallback` need no mark.
"""

hookspec: Final = pluggy.HookspecMarker(PROJECT)
"""Marks a hook of a plugin's own as deprecated, by `warn_on_impl`, or some of its arguments, by
`warn_on_impl_args`. Other hooks of a plugin need no mark.
"""


@dataclass(frozen=True)
class HookSpec:
    """What is true of a hook beside what its method says.

    Attributes:
        name: of the hook.
        arguments: their names.
        set_up: it belongs to the command line and is called plugin by plugin; all others belong to
            a run.
        per_batch: it is called so often that its time is sampled; all others are always timed.
        answers: its answers are used.
        may_refuse: a `UsageError` in it refuses the run.
        read_only: a callback has no reason to change weights or gradients in it.
        tensors: arguments that the caller has copied for the hook, which does for one taker: of
            several each gets a copy.
        copies: argument -> what makes each callback's own of it, from the argument, the callback's
            state key, and the name of its class.
        deprecated: why nobody should implement it any more, and what to do; empty where it is not.
        deprecated_arguments: argument -> the same of it.
    """

    name: str
    arguments: tuple[str, ...]
    set_up: bool = False
    per_batch: bool = False
    answers: bool = False
    may_refuse: bool = False
    read_only: bool = False
    tensors: tuple[str, ...] = ()
    copies: Mapping[str, _Copy] = field(default_factory=dict)
    deprecated: str = ""
    deprecated_arguments: Mapping[str, str] = field(default_factory=dict)


class OptionParser(Protocol):
    """The part of `argparse` that `add_options` is handed: the plugin's own group of the command's
    help.
    """

    def add_argument(self, *names: str, **settings: Any) -> object:
        """As `argparse.ArgumentParser.add_argument`."""
        ...


def read_spec(function: Callable[..., Any], **properties: Any) -> HookSpec:
    """Returns the spec of the hook that a method declares, its deprecations as `hookspec` marks
    them.
    """
    arguments = tuple(inspect.signature(function).parameters)[1:]
    mark = getattr(function, f"{PROJECT}_spec", {})
    old = {name: str(why) for name, why in (mark.get("warn_on_impl_args") or {}).items()}
    return HookSpec(
        function.__name__,
        arguments,
        deprecated=str(mark.get("warn_on_impl") or ""),
        deprecated_arguments=old,
        **properties,
    )
