"""The order of callbacks: as given, then discovered ones by name, then moved by what classes say
with `before` and `after`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import PluginError

if TYPE_CHECKING:
    from .manager import Plugin

__all__ = ["arrange"]


def arrange(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Returns `plugins` in call order, each under a name of its own.

    The given order is kept except where a callback's `before` or `after` (names of plugins; absent
    ones are ignored) asks for
    another; of several possible orders it is the one that is nearest to the given one.

    Raises:
        PluginError: the wishes form a cycle; the message names the plugins in it.
    """
    _make_names_unique(plugins)
    predecessors = _read_wishes(plugins)
    waiting = list(plugins)
    arranged: list[Plugin] = []
    while waiting:
        done = {plugin.name for plugin in arranged}
        ready = next((p for p in waiting if predecessors[p.name] <= done), None)
        if ready is None:
            names = ", ".join(plugin.label for plugin in waiting)
            raise PluginError(
                f"the order that plugins ask for by `before` and `after` is a cycle: {names}. "
                "Remove one of the wishes, or leave one out with --no_plugin."
            )
        waiting.remove(ready)
        arranged.append(ready)
    return arranged


def _make_names_unique(plugins: Sequence[Plugin]) -> None:
    """Two callbacks of one plugin (with two state keys) are told apart by the key."""
    counts = Counter(plugin.name for plugin in plugins)
    for plugin in plugins:
        if counts[plugin.name] > 1:
            plugin.name = f"{plugin.name}[{plugin.state_key}]"


def _read_wishes(plugins: Sequence[Plugin]) -> dict[str, set[str]]:
    """Returns plugin name -> names of those that must come earlier."""
    by_base: dict[str, list[str]] = {}
    for plugin in plugins:
        by_base.setdefault(plugin.name.partition("[")[0], []).append(plugin.name)
    predecessors: dict[str, set[str]] = {plugin.name: set() for plugin in plugins}
    for plugin in plugins:
        for other in getattr(plugin.callback, "after", ()):
            predecessors[plugin.name].update(by_base.get(other, ()))
        for other in getattr(plugin.callback, "before", ()):
            for name in by_base.get(other, ()):
                predecessors[name].add(plugin.name)
    return predecessors
