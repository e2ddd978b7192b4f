"""The callbacks of one run: registered with pluggy, in order, under names; their failures and
answers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

import pluggy

from ..discovery import find_entries
from ..errors import CallbackError, PluginError, UsageError, text_of
from ..hookspecs import HOOKS, TrainerCallback
from ..protocol import TrainerProtocol
from ..specs import HookSpec
from .costs import CostMeter
from .dispatch import Answer, Owned, find_shared, make_call
from .extensions import ExtensionHooks, explain_absent, join_hooks, warn_deprecated
from .identity import Plugin, identify, list_callbacks
from .implementation import Implementation, find_implementations, find_late, find_slips
from .naming import UnknownHookError
from .order import arrange
from .registry import Registry
from .tracing import Tracer, check_glob
from .wrappers import wrap

__all__ = ["CallbackManager", "Plugin"]

logger: logging.Logger = logging.getLogger("trainer")


class CallbackManager:
    """All callbacks of a run, in call order.

    Attributes:
        plugins: the callbacks with their identity, the switched-off ones included.
        switched_off: names of those that have failed and were not critical.
        hook: what calls the hooks: `manager.hook.on_log(trainer=..., metrics=..., step=...)` calls
            everybody who implements `on_log`. It stays the same object; its attributes change where
            a callback is switched off, or where the hooks of the batch are timed. Keep the manager
            as long as it is used.
        extensions: what calls the hooks that callbacks of the run bring, in the same way.
        specs: all hooks of the run by name, the trainer's own first.
        used: the hooks that somebody implements now.
        asked: of each of them, the arguments that somebody asks for.
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
        self._registry = Registry()
        listed = list_callbacks(callbacks)
        entries = find_entries() if listed else []
        given = [identify(callback, index, entries) for index, callback in enumerate(listed)]
        found = [identify(plugin, index, ()) for index, plugin in enumerate(discovered)]
        self.plugins: list[Plugin] = arrange([*given, *found])
        self.switched_off: list[str] = []
        self.hook: TrainerCallback = TrainerCallback()  # whose own methods do nothing
        self.used: frozenset[str] = frozenset()
        self.asked: dict[str, frozenset[str]] = {}
        self.specs: dict[str, HookSpec] = join_hooks(self.plugins)
        brought = [spec for name, spec in self.specs.items() if name not in HOOKS]
        self.extensions: ExtensionHooks = ExtensionHooks(brought, self.hook)
        self._costs = CostMeter()
        self._tracer: Tracer | None = None
        self._is_timed = False
        self._failures: list[BaseException] = []
        self._passed: tuple[BaseException, Plugin] | None = None
        self._refusal: BaseException | None = None
        self._found: dict[str, list[Implementation]] = {}
        self._check_states()
        for plugin in self.plugins:
            self._register(plugin)
        self._bind()

    def __del__(self) -> None:
        self._registry.empty()  # which is in a circle; who else holds it holds the callbacks

    def trace(self, glob: str | bool | None, start: str = "") -> None:
        """Has a line written for each call of the hooks whose names match `glob`.

        Args:
            glob: True for all hooks; None or False for none.
            start: what each line begins with.

        Raises:
            PluginError: it matches no hook.
        """
        pattern = check_glob(glob, [name for name, spec in self.specs.items() if not spec.set_up])
        self._tracer = None if pattern is None else Tracer(pattern, start)
        self._bind()

    def ask_stop(self, *, trainer: TrainerProtocol) -> list[Answer]:
        """Returns the answers to `should_stop_training`, but for None, and whose they are."""
        answers: Any = self.hook.should_stop_training(trainer=trainer)
        return answers or []

    def ask_state(self, *, trainer: TrainerProtocol, epoch: int, step: int) -> list[Answer]:
        """Returns the answers to `on_snapshot_save`, but for None, and whose they are."""
        answers: Any = self.hook.on_snapshot_save(trainer=trainer, epoch=epoch, step=step)
        return answers or []

    def start_update(self) -> None:
        """Is called before each update, and has the hooks of the batch timed in some of them."""
        timed = self._costs.start_update()
        if timed is not self._is_timed:
            self._is_timed = timed
            vars(self.hook).update(self._timed if timed else self._plain)

    def implementers(self, hook: str) -> set[str]:
        """Returns the names of the plugins that implement `hook`."""
        return {plugin.name for plugin, _ in self._implementations(hook)}

    def askers(self, hook: str, arguments: Set[str]) -> set[str]:
        """Returns the names of the plugins that ask for one of `arguments` in `hook`."""
        return {
            plugin.name
            for plugin, each in self._implementations(hook)
            if not arguments.isdisjoint(each.asked)
        }

    def costs(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns plugin name -> hook -> `calls` and `seconds` in this process; hooks of the batch
        are scaled up from their sample.
        """
        return self._costs.totals()

    def find_uncalled(self) -> list[tuple[str, str]]:
        """Returns name of the plugin and name of the hook, of those that nobody has called yet."""
        called = self.costs()
        return [
            (plugin.name, each.hook)
            for plugin in self.plugins
            for each in self._found[plugin.name]
            if not each.spec.set_up and each.hook not in called.get(plugin.name, {})
        ]

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
        others. What passes is none, and gives way to one.
        """
        failures = sorted(self._take(count), key=lambda each: self.passed_by(each) is not None)
        for other in failures[1:]:
            logger.error("%s", other)
        try:
            if failures:
                raise failures[0]
        finally:
            del failures  # whose traceback has this frame

    def passed_by(self, error: BaseException | None) -> Plugin | None:
        """Returns whose exception `error` is, if that callback lets it pass to the caller."""
        if self._passed is None or self._passed[0] is not error:
            return None
        return self._passed[1]

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
        self._passed = self._refusal = None  # they hold the frames of the run

    def _find_late(self) -> Iterator[str]:
        for plugin in self.plugins:
            if (registered := self._registry.get_plugin(plugin.name)) is not None:
                for text in find_late(plugin.callback, vars(registered), self.specs):
                    yield f"{plugin.label}: {text}"

    def _take(self, count: int | None) -> list[BaseException]:
        start = 0 if count is None else len(self._failures) - count
        taken = self._failures[start:]
        del self._failures[start:]
        return taken

    def _judge(self, plugin: Plugin, hook: str, error: BaseException) -> BaseException | None:
        is_known = error is self._refusal or self.passed_by(error) is not None
        if isinstance(error, CallbackError) or is_known:
            return error  # of another callback, in an event that this sent
        if plugin.name in self.switched_off:
            return None
        if isinstance(error, plugin.passes):
            self._passed = (error, plugin)
            return error
        refuses = hook in self.specs and self.specs[hook].may_refuse  # `submit` is no hook
        if isinstance(error, UsageError) and (refuses or plugin.critical):
            failure: Exception = PluginError(f"{plugin.label}: {text_of(error)}")
            failure.__cause__ = error
            if hook not in HOOKS:  # whoever sent the event is not to be blamed
                self._refusal = failure
            return failure if refuses or hook not in HOOKS else error
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
        self._bind()
        _close(next(plugin for plugin in self.plugins if plugin.name == name))

    def _register(self, plugin: Plugin) -> None:
        try:
            found = self._found[plugin.name] = self._find(plugin)
            self._registry.add(plugin.name, found)
        except (PluginError, pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"{plugin.label}: {error}") from error
        warn_deprecated(plugin, found)
        for text in find_slips(plugin.callback, self.specs):
            logger.warning("%s: %s", plugin.label, text)

    def _find(self, plugin: Plugin) -> list[Implementation]:
        try:
            return find_implementations(plugin.callback, self.specs)
        except UnknownHookError as error:
            installed = [(entry, entry.find_loaded()) for entry in find_entries()]
            bringers = [
                Plugin(target, entry.name, entry.distribution, entry.version)
                for entry, target in installed
            ]
            raise explain_absent(error, bringers) from None

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

    def _implementations(self, hook: str) -> list[Owned]:
        """Returns who implements `hook`, in call order. Where pluggy's markers leave a choice,
        callbacks go in their own order, also among `trylast` ones, which pluggy would turn round.
        """
        found = [
            (plugin, each)
            for plugin in self.plugins
            if self._registry.has_plugin(plugin.name)
            for each in self._found[plugin.name]
            if each.hook == hook
        ]
        return sorted(found, key=lambda own: (own[1].has("trylast"), not own[1].has("tryfirst")))

    def _bind(self) -> None:
        """Makes the calls anew, and puts them into `hook`; the hooks of nobody do nothing there."""
        specs = self.specs
        found = {hook: self._implementations(hook) for hook in specs}
        self.used = frozenset(hook for hook in specs if found[hook])
        self.asked = {
            hook: frozenset(name for _, each in own for name in each.asked)
            for hook, own in found.items()
        }
        batch = [hook for hook in specs if hook in self.used and specs[hook].per_batch]
        self._plain = {hook: self._make_call(specs[hook], found[hook], None) for hook in batch}
        timed = {hook: self._make_call(specs[hook], found[hook], self._costs) for hook in self.used}
        self._timed = {hook: timed[hook] for hook in batch}
        vars(self.hook).update(timed if self._is_timed else {**timed, **self._plain})
        for hook in vars(self.hook).keys() - self.used:
            delattr(self.hook, hook)

    def _make_call(
        self, spec: HookSpec, found: Sequence[Owned], costs: CostMeter | None
    ) -> Callable[..., Any]:
        shared = find_shared(spec, [each for _, each in found])
        wrappers = [own for own in found if own[1].has("wrapper")]
        others = [own for own in found if not own[1].has("wrapper")]
        tracer = self._tracer if self._tracer and self._tracer.follows(spec) else None
        if tracer is not None:
            others = [tracer.follow(own) for own in others]
        call: Callable[..., Any] = getattr(TrainerCallback(), spec.name, _do_nothing)
        myself = weakref.proxy(self)  # a circle would keep all that callbacks hold
        if others:
            call = make_call(spec, others, myself, costs, shared)
        for wrapper in reversed(wrappers):
            call = wrap(spec, call, wrapper, myself, costs=costs, shared=shared)
        return call if tracer is None else tracer.wrap(spec, call)


def _do_nothing(**arguments: Any) -> None:
    """Stands for a hook that nobody implements."""


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
