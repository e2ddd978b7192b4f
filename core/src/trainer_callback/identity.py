"""Who a callback is: its name, where it was installed from, the key of its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from .discovery import Entry
from .errors import PluginError
from .implementation import describe

__all__ = ["Plugin", "identify"]


@dataclass(eq=False)
class Plugin:
    """A callback with its identity.

    Attributes:
        callback: the instance, module or object whose hooks are called.
        name: the entry point's name, or the class name of a callback that is not installed.
        distribution, version: where it came from; empty for code that is not installed.
    """

    callback: object
    name: str
    distribution: str = ""
    version: str = ""

    @property
    def label(self) -> str:
        """The name with distribution and version, for messages."""
        return f"{self.name} ({self.origin or 'not installed'})"

    @property
    def origin(self) -> str:
        """Distribution and version, or an empty string."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def state_key(self) -> str:
        """Key of its state in `checkpoint["callback_state"]`.

        Raises:
            PluginError: its own `state_key` is no name.
        """
        own = getattr(self.callback, "state_key", None)
        if own is None:
            return self.name if isinstance(self.callback, ModuleType) else describe(self.callback)
        if not isinstance(own, str) or not own:
            raise PluginError(
                f"{self.label}: state_key must be a name, got {own!r}. Leave it out for the class "
                "name."
            )
        return own

    @property
    def state_version(self) -> int:
        """The form of its state; 1 unless it says otherwise.

        Raises:
            PluginError: its own `state_version` is no count.
        """
        version = getattr(self.callback, "state_version", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise PluginError(
                f"{self.label}: state_version must be an integer of at least 1, got {version!r}."
            )
        return version

    @property
    def needs_every_update(self) -> bool:
        """Whether its state is worth nothing once it has missed an update."""
        return bool(getattr(self.callback, "needs_every_update", False))

    @property
    def critical(self) -> bool:
        """Whether its failure ends the run."""
        return bool(getattr(self.callback, "critical", True))


def identify(callback: object, index: int, entries: Sequence[Entry]) -> Plugin:
    """Names what was handed over in code, from the metadata of what is installed.

    Raises:
        PluginError: it is a class.
    """
    plugin = callback if isinstance(callback, Plugin) else None
    callback = plugin.callback if plugin is not None else callback
    if isinstance(callback, type):
        where = plugin.label if plugin is not None else f"callbacks[{index}]"
        name = callback.__name__
        raise PluginError(f"{where} is the class {name}, not an instance. Write {name}().")
    if plugin is not None:
        return plugin
    for entry in entries:
        target = entry.find_loaded()
        if target is not None and (target is callback or target is type(callback)):
            return Plugin(callback, entry.name, entry.distribution, entry.version)
    return Plugin(callback, describe(callback))
