"""What pluggy does for a run: it checks what is registered, and knows who is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from ..hookspecs import TrainerCallback
from ..specs import PROJECT
from .implementation import Implementation

__all__ = ["Registry"]


class _Functions:
    """Hook functions as attributes: what pluggy is shown of a callback."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        vars(self).update(functions)


class Registry(pluggy.PluginManager):
    """The callbacks as pluggy has them."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(TrainerCallback)
        self._options: dict[str, dict[str, Any]] = {}

    def add(self, name: str, found: Sequence[Implementation]) -> None:
        """Registers the implementations of a plugin under its name."""
        self._options = {each.attribute: dict(each.options) for each in found}
        self.register(_Functions({each.attribute: each.function for each in found}), name)

    def empty(self) -> None:
        """Lets go of the callbacks: pluggy's own objects are in a circle."""
        for plugin in self.get_plugins():
            self.unregister(plugin)

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        """As pluggy, but `warn_deprecated` is who warns."""
        options = super().parse_hookspec_opts(module_or_class, name)
        return options and {**options, "warn_on_impl": None, "warn_on_impl_args": None}

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """As pluggy, but overrides of a `TrainerCallback` need no marker."""
        return self._options.get(name)
