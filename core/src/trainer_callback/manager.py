"""The callbacks of one run: registered with pluggy, in order, under names; their failures, answers
and costs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, cast

import pluggy

from .discovery import Entry, find_entries
from .dispatch import PER_BATCH, Answer, HookCost, Receiver, compile_hook
from .errors import CallbackError, PluginError, UsageError
from .hookspecs import HOOKS, PROJECT, TrainerCallback
from .implementation import describe, find_implementations
from .order import arrange

__all__ = ["SAMPLE_EVERY", "CallbackManager", "HookTable", "Plugin"]

logger = logging.getLogger("trainer")

SAMPLE_EVERY: Final = 31
"""Hooks of the batch are timed in one update of so many: a prime, so that it does not fall in step
with anybody's interval.
"""


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
        origin = f"{self.distribution} {self.version}" if self.distribution else "not installed"
        return f"{self.name} ({origin})"

    @property
    def state_key(self) -> str:
        """Key of its state in `checkpoint["callback_state"]`."""
        own = getattr(self.callback, "state_key", None)
        if isinstance(own, str):
            return own
        return self.name if isinstance(self.callback, ModuleType) else describe(self.callback)

    @property
    def critical(self) -> bool:
        """Whether its failure ends the run."""
        return bool(getattr(self.callback, "critical", True))


@dataclass(frozen=True)
class HookTable:
    """The compiled hooks.

    Attributes:
        plain: hooks of the batch are not timed, all others are.
        timed: all are timed; used in one update of `SAMPLE_EVERY`.
        ask_stop, ask_timed_stop: `should_stop_training` of each table, typed as what it returns.
        ask_state: `on_snapshot_save`, likewise.
        used: the hooks that somebody implements.
    """

    plain: TrainerCallback
    timed: TrainerCallback
    ask_stop: Callable[..., list[Answer]]
    ask_timed_stop: Callable[..., list[Answer]]
    ask_state: Callable[..., list[Answer]]
    used: frozenset[str]


class CallbackManager(pluggy.PluginManager):
    """All callbacks of a run, in call order."""

    def __init__(self, callbacks: Sequence[object] = (), discovered: Sequence[Plugin] = ()) -> None:
        """Registers `callbacks` in their order, then `discovered`.

        Args:
            callbacks: `TrainerCallback` instances, modules or objects with `@hookimpl` functions,
                or `Plugin` records of such.

        Raises:
            PluginError: a class, a misspelt hook, a wrong argument, one state key twice; the
                message names class and distribution.
        """
        super().__init__(PROJECT)
        self.add_hookspecs(TrainerCallback)
        entries = find_entries() if callbacks else []
        given = [_identify(callback, index, entries) for index, callback in enumerate(callbacks)]
        self.plugins: list[Plugin] = arrange([*given, *discovered])
        self.switched_off: list[str] = []
        self._costs: dict[tuple[str, str], HookCost] = {}
        self._failures: list[CallbackError] = []
        self._updates = self._timed_updates = 0
        self._registering: dict[str, dict[str, Any]] = {}
        self._check_state_keys()
        for plugin in reversed(self.plugins):  # pluggy calls the last registered first
            self._register(plugin)
        self.table = self._compile()

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """As pluggy, but overrides of a `TrainerCallback` need no marker, and properties are not
        run.
        """
        return self._registering.get(name)

    def start_update(self) -> tuple[TrainerCallback, Callable[..., list[Answer]]]:
        """Returns the hooks, and `should_stop_training`, to use until the next update: in one of
        `SAMPLE_EVERY` the timed ones.
        """
        timed = self._updates % SAMPLE_EVERY == 0
        self._updates += 1
        self._timed_updates += timed
        table = self.table
        return (table.timed, table.ask_timed_stop) if timed else (table.plain, table.ask_stop)

    def costs(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns plugin name -> hook -> `calls` and `seconds` in this process; hooks of the batch
        are scaled up from their sample.
        """
        result: dict[str, dict[str, dict[str, float]]] = {}
        scale = self._updates / max(1, self._timed_updates)
        for (name, hook), cost in self._costs.items():
            factor = scale if hook in PER_BATCH else 1.0
            if cost.calls:
                scaled = {"calls": cost.calls * factor, "seconds": cost.seconds * factor}
                result.setdefault(name, {})[hook] = scaled
        return result

    def caught(self, plugin: Plugin, hook: str, error: BaseException) -> None:
        """Notes that `plugin` raised in `hook`; one that is not critical is switched off
        instead.
        """
        if isinstance(error, UsageError) and hook in ("on_train_start", "on_snapshot_load"):
            raise PluginError(f"{plugin.label}: {error}") from error
        if plugin.name in self.switched_off:
            return
        message = f"{plugin.label} failed in {hook}: {type(error).__name__}: {error}"
        if not plugin.critical:
            logger.warning("%s. It is not critical and is switched off; the run goes on.", message)
            self.switched_off.append(plugin.name)
            self.unregister(name=plugin.name)
            self.table = self._compile()
            return
        failure = CallbackError(message)
        failure.__cause__ = error
        self._failures.append(failure)

    def finish(self) -> None:
        """Raises the first failure of the event, after logging the others."""
        if not self._failures:
            return
        first, *others = self._failures
        self._failures = []
        for other in others:
            logger.error("%s", other)
        raise first

    def _register(self, plugin: Plugin) -> None:
        try:
            found = find_implementations(plugin.callback)
            self._registering = {each.attribute: each.options for each in found}
            self.register(plugin.callback, plugin.name)
        except PluginError as error:
            raise PluginError(f"{plugin.label}: {error}") from None
        except ValueError as error:
            raise PluginError(f"{plugin.label} cannot be registered: {error}") from error

    def _check_state_keys(self) -> None:
        owners: dict[str, Plugin] = {}
        for plugin in self.plugins:
            owner = owners.setdefault(plugin.state_key, plugin)
            if owner is not plugin:
                raise PluginError(
                    f"two callbacks have the state key {plugin.state_key!r}: {owner.label} and "
                    f"{plugin.label}. Give each its own `state_key`."
                )

    def _compile(self) -> HookTable:
        compiled = {True: self._compile_all(timed=True), False: self._compile_all(timed=False)}
        plain = {hook: compiled[hook not in PER_BATCH][hook] for hook in HOOKS}
        return HookTable(
            plain=cast(TrainerCallback, _Hooks(plain)),
            timed=cast(TrainerCallback, _Hooks(compiled[True])),
            ask_stop=plain["should_stop_training"],
            ask_timed_stop=compiled[True]["should_stop_training"],
            ask_state=plain["on_snapshot_save"],
            used=frozenset(hook for hook in HOOKS if self._implementations(hook)),
        )

    def _compile_all(self, *, timed: bool) -> dict[str, Callable[..., Any]]:
        return {hook: self._compile_one(hook, timed=timed) for hook in HOOKS}

    def _compile_one(self, hook: str, *, timed: bool) -> Callable[..., Any]:
        by_name = {plugin.name: plugin for plugin in self.plugins}
        receivers: list[Receiver] = []
        wrappers: list[Receiver] = []
        for implementation in self._implementations(hook):
            plugin = by_name[implementation.plugin_name]
            cost = self._costs.setdefault((plugin.name, hook), HookCost())
            receiver = Receiver(plugin, implementation.function, cost)
            wraps = implementation.wrapper or implementation.hookwrapper
            (wrappers if wraps else receivers).append(receiver)
        return compile_hook(hook, receivers[::-1], wrappers, self, timed=timed)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        caller: pluggy.HookCaller = getattr(self.hook, hook)
        return caller.get_hookimpls()


class _Hooks:
    """Hook name -> compiled function, as attributes."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)


def _identify(callback: object, index: int, entries: Sequence[Entry]) -> Plugin:
    """Names what was handed over in code, from the metadata of what is installed."""
    if isinstance(callback, Plugin):
        return callback
    if isinstance(callback, type):
        name = callback.__name__
        raise PluginError(
            f"callbacks[{index}] is the class {name}, not an instance. Write {name}()."
        )
    cls = type(callback)
    for entry in entries:
        module, _, attribute = entry.value.partition(":")
        if isinstance(callback, ModuleType):
            if not attribute and callback.__name__ == module:
                return Plugin(callback, entry.name, entry.distribution, entry.version)
        elif attribute == cls.__name__ and cls.__module__.split(".")[0] == module.split(".")[0]:
            return Plugin(callback, entry.name, entry.distribution, entry.version)
    return Plugin(callback, describe(callback))
