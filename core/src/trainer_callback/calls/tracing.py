"""A line for each call of a hook, for somebody who looks for one: with what, whom it reached, how
long they took, what they answered. Where nobody asks for it, nothing of it is called.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final

from ..errors import PluginError, closest, show, text_of
from ..specs import HookSpec
from ..wording import option_text
from .dispatch import Owned

__all__ = ["Tracer", "check_glob"]

_WIDEST: Final = 60
"""Characters of one value."""

_MOST: Final = 8
"""Values of a list or mapping that are shown."""


def check_glob(glob: object, hooks: Iterable[str]) -> str | None:
    """Returns the pattern that `trace_hooks` means: all hooks for True, None for False or None.

    Args:
        hooks: the names of the hooks that there are.

    Raises:
        PluginError: it is no text, or matches none of them.
    """
    if glob is None or glob is False:
        return None
    pattern, names = "*" if glob is True else glob, list(hooks)
    if not isinstance(pattern, str):
        raise PluginError(
            f"{option_text('trace_hooks')} must be a pattern of names of hooks, got {show(glob)}. "
            f"Use {option_text('trace_hooks', 'on_epoch_*')}."
        )
    if not any(fnmatchcase(name, pattern) for name in names):
        raise PluginError(
            f"{option_text('trace_hooks', pattern)} matches no hook.{closest(pattern, names)} The "
            f"hooks are {', '.join(names)}."
        )
    return pattern


class Tracer:
    """Writes a line to stderr for each call of the hooks that it follows. Calls may be nested: that
    of an inner one ends first, and has its line first.

    Args:
        pattern: of the names of hooks, as `check_glob` has returned it.
        start: what each line begins with.
    """

    def __init__(self, pattern: str, start: str = "") -> None:
        self._pattern = pattern
        self._start = start
        self._reached: list[list[str]] = []

    def follows(self, spec: HookSpec) -> bool:
        """Whether the hook is one of those that were asked for."""
        return fnmatchcase(spec.name, self._pattern)

    def follow(self, owned: Owned) -> Owned:
        """Returns an implementation that notes its time and its answer."""
        plugin, implementation = owned
        function, reached = implementation.function, self._reached

        @functools.wraps(function)
        def noted(*arguments: Any, **named: Any) -> Any:
            start, end = time.perf_counter(), ""
            try:
                answer = function(*arguments, **named)
                end = "" if answer is None else f" -> {_shorten(answer)}"
            except BaseException as error:
                end = f" raised {type(error).__name__}: {_cut(text_of(error))}"
                raise
            finally:
                if reached:
                    taken = 1e3 * (time.perf_counter() - start)
                    reached[-1].append(f"{plugin.name} {taken:.3f} ms{end}")
            return answer

        return plugin, replace(implementation, function=noted)

    def wrap(self, spec: HookSpec, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `call`, which calls the hook, with a line for each time."""

        def traced(**arguments: Any) -> Any:
            self._reached.append([])
            start = time.perf_counter()
            try:
                return call(**arguments)
            finally:
                taken = 1e3 * (time.perf_counter() - start)
                reached = self._reached.pop()
                self._write(spec, arguments, f"{taken:.3f} ms: {', '.join(reached) or 'nobody'}")

        return traced

    def _write(self, spec: HookSpec, arguments: Mapping[str, Any], rest: str) -> None:
        given = [
            f"{name}={_shorten(value)}" for name, value in arguments.items() if name != "trainer"
        ]
        sys.stderr.write(f"{self._start}{spec.name}({', '.join(given)}) {rest}\n")


def _shorten(value: Any, *, inside: bool = False) -> str:
    """Returns the form of a value, and not what is in it: of a tensor type and shape, which needs
    no wait for the device.

    Args:
        inside: it is a value of a mapping or a list.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).rpartition('.')[2]}{[*value.shape]}"
    if isinstance(value, (Mapping, list, tuple)):
        if inside:
            return f"{type(value).__name__} of {len(value)}"
        pairs = value.items() if type(value) is dict else enumerate(value)
        first = [(key, _shorten(each, inside=True)) for key, each in islice(pairs, _MOST)]
        if type(value) is dict:
            first = [(key, f"{key}: {text}") for key, text in first]
        texts = [text for _, text in first] + ["..."] * (len(value) > _MOST)
        return ("{" + ", ".join(texts) + "}") if type(value) is dict else f"[{', '.join(texts)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _cut(show(value))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else f"{line[:_WIDEST]}..."
