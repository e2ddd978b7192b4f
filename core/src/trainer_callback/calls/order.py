"""The order of callbacks: as given, then discovered ones by name, then moved by what classes say
with `before` and `after`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from ..errors import PluginError, show
from .identity import Plugin

__all__ = ["arrange"]


def arrange(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Returns copies of `plugins` in call order, each under a name of its own.

    The given order is kept except where a callback's `before` or `after` (names of plugins; absent
    ones are ignored) asks for another; of several possible orders it is the one that is nearest to
    the given one.

    Raises:
        PluginError: `before` and `after` form a cycle; the message names the plugins in it.
    """
    waiting = _name_apart(plugins)
    predecessors = _find_predecessors(waiting)
    try:
        TopologicalSorter({name: sorted(predecessors[name]) for name in predecessors}).prepare()
    except CycleError as error:
        labels = {plugin.name: plugin.label for plugin in waiting}
        cycle = " after ".join(labels[name] for name in reversed(error.args[1]))
        raise PluginError(
            f"the order that plugins ask for by `before` and `after` is a cycle: {cycle}. Remove "
            "one of the wishes, or leave one of the plugins out."
        ) from None
    arranged: list[Plugin] = []
    while waiting:
        done = {plugin.name for plugin in arranged}
        ready = next(plugin for plugin in waiting if predecessors[plugin.name] <= done)
        waiting.remove(ready)
        arranged.append(ready)
    return arranged


def _name_apart(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Several callbacks of one plugin (with state keys of their own) are told apart by the key."""
    counts = Counter(plugin.name for plugin in plugins)
    return [
        replace(plugin, name=f"{plugin.name}[{plugin.state_key}]")
        if counts[plugin.name] > 1
        else replace(plugin)
        for plugin in plugins
    ]


def _find_predecessors(plugins: Sequence[Plugin]) -> dict[str, set[str]]:
    """Returns plugin name -> names of those that must come earlier."""
    by_base: dict[str, list[str]] = {}
    for plugin in plugins:
        by_base.setdefault(_base(plugin.name), []).append(plugin.name)
    predecessors: dict[str, set[str]] = {plugin.name: set() for plugin in plugins}
    for plugin in plugins:
        for other in _names(plugin, "after"):
            predecessors[plugin.name].update(by_base.get(_base(other), ()))
        for other in _names(plugin, "before"):
            for name in by_base.get(_base(other), ()):
                predecessors[name].add(plugin.name)
    return predecessors


def _base(name: str) -> str:
    return name.partition("[")[0].replace("-", "_")


def _names(plugin: Plugin, attribute: str) -> Sequence[str]:
    names: Sequence[str] = getattr(plugin.callback, attribute, ())
    if isinstance(names, property):  # of a class: its instances say
        return ()
    if not isinstance(names, (tuple, list)) or not all(isinstance(each, str) for each in names):
        example = f"({names!r},)" if isinstance(names, str) else '("early_stopping",)'
        raise PluginError(
            f"{plugin.label}: {attribute} must be a tuple of plugin names, got {show(names)}. "
            f"Write {attribute} = {example}."
        )
    return names
