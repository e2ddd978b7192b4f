"""The callbacks of one run: registered with pluggy, in order, under names; their failures and
answers.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import pluggy

from .costs import PER_BATCH, CostMeter
from .discovery import find_entries
from .dispatch import Answer, Receiver, compile_adapter, compile_hook, find_shared
from .errors import CallbackError, PluginError, UsageError, show, text_of
from .hookspecs import HOOKS, PROJECT, TrainerCallback
from .identity import Plugin, identify
from .implementation import find_implementations, find_late, find_unmarked
from .order import arrange
from .wrappers import wrap

__all__ = ["CallbackManager", "HookTable", "Plugin"]

logger: logging.Logger = logging.getLogger("trainer")

_REFUSING = frozenset({"on_train_start", "on_snapshot_load"})


class _Hooks:
    """Hook name -> compiled function, as attributes. Compiling anew changes it in place, so that
    whoever holds it calls nobody who has been switched off.
    """

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)


@dataclass(frozen=True)
class HookTable:
    """The compiled hooks.

    Attributes:
        plain: hooks of the batch are not timed, all others are.
        timed: all are timed; used in the updates that `CostMeter` chooses.
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


class _Registry(pluggy.PluginManager):
    """pluggy's part: it checks what is registered, and holds it hook by hook."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(TrainerCallback)
        self._options: dict[str, dict[str, Any]] = {}

    def add(self, plugin: Plugin) -> None:
        """Registers the hooks of `plugin` under its name."""
        found = find_implementations(plugin.callback)
        self._options = {each.attribute: each.options for each in found}
        functions = {each: getattr(plugin.callback, each) for each in self._options}
        self.register(_Hooks(functions), plugin.name)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """As pluggy, but overrides of a `TrainerCallback` need no marker."""
        return self._options.get(name)

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Returns what is registered for `hook`."""
        caller: pluggy.HookCaller = getattr(self.hook, hook)
        return caller.get_hookimpls()


class CallbackManager:
    """All callbacks of a run, in call order.

    Attributes:
        plugins: the callbacks with their identity, the switched-off ones included.
        switched_off: names of those that have failed and were not critical.
        table: the compiled hooks.
    """

    def __init__(self, callbacks: Sequence[object] = (), discovered: Sequence[Plugin] = ()) -> None:
        """Registers `callbacks` in their order, then `discovered`.

        Args:
            callbacks: `TrainerCallback` instances, modules or objects with `@hookimpl` functions,
                or `Plugin` records of such.

        Raises:
            PluginError: no list, a class, a misspelt hook, a wrong argument, one state key twice;
                the message names class and distribution.
        """
        listed = _list(callbacks)
        entries = find_entries() if listed else []
        given = [identify(callback, index, entries) for index, callback in enumerate(listed)]
        found = [identify(plugin, index, ()) for index, plugin in enumerate(discovered)]
        self.plugins: list[Plugin] = arrange([*given, *found])
        self.switched_off: list[str] = []
        self._costs = CostMeter()
        self._failures: list[CallbackError | PluginError] = []
        self._registry = _Registry()
        self._check_states()
        for plugin in reversed(self.plugins):  # pluggy calls the last registered first
            self._register(plugin)
        self._plain, self._timed = _Hooks({}), _Hooks({})
        self.table: HookTable = self._compile()

    def start_update(self) -> tuple[TrainerCallback, Callable[..., list[Answer]]]:
        """Returns the hooks, and `should_stop_training`, to use until the next update."""
        table = self.table
        if self._costs.start_update():
            return table.timed, table.ask_timed_stop
        return table.plain, table.ask_stop

    def implementers(self, hook: str) -> set[str]:
        """Returns the names of the plugins that implement `hook`."""
        return {each.plugin_name for each in self._registry.implementations(hook)}

    def askers(self, hook: str, arguments: Set[str]) -> set[str]:
        """Returns the names of the plugins that ask for one of `arguments` in `hook`."""
        return {
            each.plugin_name
            for each in self._registry.implementations(hook)
            if arguments & inspect.signature(each.function).parameters.keys()
        }

    def costs(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns plugin name -> hook -> `calls` and `seconds` in this process; hooks of the batch
        are scaled up from their sample.
        """
        return self._costs.totals()

    def caught(self, plugin: Plugin, hook: str, error: BaseException) -> int:
        """Notes that `plugin` raised in `hook`; one that is not critical is switched off instead.

        Returns:
            How many failures are to be finished: 0 or 1.
        """
        failure = self._judge(plugin, hook, error)
        if failure is None:
            return 0
        self._failures.append(failure)
        return 1

    def finish(self, count: int | None = None) -> None:
        """Raises the first of the last `count` failures (default: of all), after logging the
        others.
        """
        failures = self._take(count)
        for other in failures[1:]:
            logger.error("%s", other)
        if failures:
            raise failures[0]

    def drop(self, count: int) -> None:
        """Logs the last `count` failures: something graver ends the run."""
        for failure in self._take(count):
            logger.error("%s", failure)

    def switch_off(self, names: Iterable[str]) -> None:
        """Calls the plugins `names` no more: they have failed in another process, which they would
        wait for.
        """
        for name in names:
            if name not in self.switched_off:
                text = "%s has failed in another process and is switched off here too."
                logger.warning(text, name)
                self._remove(name)

    def check_late(self) -> None:
        """Raises a `PluginError` where a hook was set on a callback after it was registered."""
        for text in self._find_late():
            raise PluginError(text)

    def close(self) -> None:
        """Calls `close` of every callback, at the end of a run; those that are switched off have
        been closed then. What goes wrong is logged: the run is over.
        """
        for text in self._find_late():
            logger.warning("%s", text)
        for plugin in self.plugins:
            if plugin.name not in self.switched_off:
                _close(plugin)

    def _find_late(self) -> Iterator[str]:
        for plugin in self.plugins:
            registered = self._registry.get_plugin(plugin.name)
            for text in find_late(plugin.callback, vars(registered)) if registered else ():
                yield f"{plugin.label}: {text}"

    def _take(self, count: int | None) -> list[CallbackError | PluginError]:
        start = 0 if count is None else len(self._failures) - count
        taken = self._failures[start:]
        del self._failures[start:]
        return taken

    def _judge(
        self, plugin: Plugin, hook: str, error: BaseException
    ) -> CallbackError | PluginError | None:
        if isinstance(error, CallbackError):  # another callback failed in an event that this sent
            return error
        if plugin.name in self.switched_off:
            return None
        if isinstance(error, UsageError) and hook in _REFUSING:
            refusal = PluginError(f"{plugin.label}: {text_of(error)}")
            refusal.__cause__ = error
            return refusal
        message = f"{plugin.label} failed in {hook}: {type(error).__name__}: {text_of(error)}"
        if plugin.critical:
            failure = CallbackError(message)
            failure.__cause__ = error
            return failure
        logger.warning("%s. It is not critical and is switched off; the run goes on.", message)
        self._remove(plugin.name)
        return None

    def _remove(self, name: str) -> None:
        self.switched_off.append(name)
        self._registry.unregister(name=name)
        self.table = self._compile()
        _close(next(plugin for plugin in self.plugins if plugin.name == name))

    def _register(self, plugin: Plugin) -> None:
        try:
            self._registry.add(plugin)
        except (PluginError, pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"{plugin.label}: {error}") from error
        for name in find_unmarked(plugin.callback):
            logger.warning(
                "%s: %s is called like a hook and has no @hookimpl, so it is never called. Mark it "
                "with @trainer_callback.hookimpl, or give it another name.",
                plugin.label,
                name,
            )

    def _check_states(self) -> None:
        owners: dict[str, Plugin] = {}
        for plugin in self.plugins:
            plugin.check()
            owner = owners.setdefault(plugin.state_key, plugin)
            if owner is plugin:
                continue
            if owner.callback is plugin.callback:
                raise PluginError(f"{plugin.label} is there twice, the same object. Give it once.")
            raise PluginError(
                f"two callbacks have the state key {plugin.state_key!r}: {owner.label} and "
                f"{plugin.label}. Give each its own `state_key`."
            )

    def _compile(self) -> HookTable:
        for hook in HOOKS:
            plain = self._compile_one(hook, timed=hook not in PER_BATCH)
            setattr(self._plain, hook, plain)
            timed = self._compile_one(hook, timed=True) if hook in PER_BATCH else plain
            setattr(self._timed, hook, timed)
        return HookTable(
            plain=cast(TrainerCallback, self._plain),
            timed=cast(TrainerCallback, self._timed),
            ask_stop=_asker(self._plain, "should_stop_training"),
            ask_timed_stop=_asker(self._timed, "should_stop_training"),
            ask_state=_asker(self._plain, "on_snapshot_save"),
            used=frozenset(hook for hook in HOOKS if self._registry.implementations(hook)),
        )

    def _compile_one(self, hook: str, *, timed: bool) -> Callable[..., Any]:
        """Returns the function for `hook`. Where pluggy's markers leave a choice, callbacks go in
        their own order, also among `trylast` ones, which pluggy would turn round.
        """
        places = {plugin.name: place for place, plugin in enumerate(self.plugins)}
        receivers: list[Receiver] = []
        wrappers: list[tuple[Receiver, bool]] = []
        for implementation in sorted(
            self._registry.implementations(hook),
            key=lambda each: (each.trylast, not each.tryfirst, places[each.plugin_name]),
        ):
            plugin = self.plugins[places[implementation.plugin_name]]
            cost = self._costs.cost(plugin.name, hook)
            receiver = Receiver(plugin, implementation.function, cost)
            if implementation.wrapper or implementation.hookwrapper:
                wrappers.append((receiver, implementation.hookwrapper))
            else:
                receivers.append(receiver)
        shared = find_shared(
            each.function for each in (*receivers, *(wrapper for wrapper, _ in wrappers))
        )
        function = compile_hook(hook, receivers, self, timed=timed, shared=shared)
        for wrapper, old in reversed(wrappers):
            start = compile_adapter(hook, wrapper, shared)
            function = wrap(hook, function, wrapper, start, old=old, timed=timed, failures=self)
        return function


def _asker(hooks: _Hooks, hook: str) -> Callable[..., list[Answer]]:
    """Returns a function that asks whoever implements `hook` when it is called."""

    def ask(**arguments: Any) -> list[Answer]:
        answers: list[Answer] = getattr(hooks, hook)(**arguments)
        return answers

    return ask


def _list(callbacks: object) -> list[object]:
    """Returns the callbacks one by one.

    Raises:
        PluginError: it is no list of them.
    """
    unordered = (str, bytes, Mapping, Set, type, ModuleType, TrainerCallback)
    if isinstance(callbacks, Iterable) and not isinstance(callbacks, unordered):
        return list(callbacks)
    if callbacks is None:
        advice = "Leave it out, or write callbacks=[]."
    elif isinstance(callbacks, type):
        advice = f"Write callbacks=[{callbacks.__name__}()]."
    elif isinstance(callbacks, str):
        advice = f"Write callbacks=[trainer.plugins.create({callbacks!r})]."
    elif isinstance(callbacks, (Mapping, Set)):
        advice = "Write callbacks=[...], in the order in which they are to be called."
    else:
        advice = "Write callbacks=[callback]."
    raise PluginError(f"callbacks must be a list of callbacks, got {show(callbacks)}. {advice}")


def _close(plugin: Plugin) -> None:
    if not isinstance(plugin.callback, TrainerCallback):
        return
    try:
        plugin.callback.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {text_of(error)}"
        logger.warning("%s failed in close: %s.", plugin.label, what)
