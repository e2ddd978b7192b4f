"""Who a callback is: its name, where it was installed from, the key of its state."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import ModuleType

from ..checks import is_count
from ..discovery import Entry
from ..errors import PluginError, show
from ..hookspecs import TrainerCallback
from .implementation import describe

__all__ = ["Plugin", "identify", "list_callbacks"]


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
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.name} ({origin or 'not installed'})"

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
                f"{self.label}: state_key must be a name, got {show(own)}. Leave it out for the "
                "class name."
            )
        return own

    @property
    def state_key_aliases(self) -> tuple[str, ...]:
        """Earlier keys of its state.

        Raises:
            PluginError: its own `state_key_aliases` is something else.
        """
        own: object = getattr(self.callback, "state_key_aliases", ())
        if isinstance(own, tuple) and all(isinstance(each, str) for each in own):
            return own
        example = f"({own!r},)" if isinstance(own, str) else '("OldName",)'
        raise PluginError(
            f"{self.label}: state_key_aliases of {describe(self.callback)} must be a tuple of "
            f"names, got {show(own)}. Write state_key_aliases = {example}."
        )

    @property
    def state_version(self) -> int:
        """The form of its state; 1 unless it says otherwise.

        Raises:
            PluginError: its own `state_version` is no count.
        """
        version: object = getattr(self.callback, "state_version", 1)
        if not is_count(version, 1):
            raise PluginError(
                f"{self.label}: state_version must be an integer of at least 1, got "
                f"{show(version)}."
            )
        return version

    @property
    def needs_every_update(self) -> bool:
        """Whether its state is worth nothing once it has missed an update."""
        return bool(getattr(self.callback, "needs_every_update", False))

    @property
    def needs_output_dir(self) -> bool:
        """Whether a run without one is refused."""
        return bool(getattr(self.callback, "needs_output_dir", False))

    @property
    def restores_weights(self) -> bool:
        """Whether it puts other weights into the model at the end of the run."""
        return bool(getattr(self.callback, "restores_weights", False))

    @property
    def state_per_process(self) -> bool:
        """Whether each process gets its own state back."""
        return bool(getattr(self.callback, "state_per_process", False))

    @property
    def critical(self) -> bool:
        """Whether its failure ends the run."""
        return getattr(self.callback, "critical", True) is not False

    @property
    def passes(self) -> tuple[type[BaseException], ...]:
        """The exceptions that end a run and are no failure.

        Raises:
            PluginError: its own `passes` is something else.
        """
        own: object = getattr(self.callback, "passes", ())
        if isinstance(own, tuple) and all(map(_is_exception, own)):
            return own
        example = f"({own.__name__},)" if isinstance(own, type) else "(optuna.TrialPruned,)"
        raise PluginError(
            f"{self.label}: passes of {describe(self.callback)} must be a tuple of exception "
            f"classes, got {show(own)}. Write passes = {example}."
        )

    @property
    def logs_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that it logs; `*` where it does not say.

        Raises:
            PluginError: its own `logs_metrics` is something else.
        """
        own: object = getattr(self.callback, "logs_metrics", None)
        if own is None:
            return ("*",)
        if isinstance(own, tuple) and all(isinstance(each, str) for each in own):
            return own
        example = f"({own!r},)" if isinstance(own, str) else '("gap",)'
        raise PluginError(
            f"{self.label}: logs_metrics of {describe(self.callback)} must be a tuple of names, "
            f"got {show(own)}. Write logs_metrics = {example}."
        )

    def check(self) -> None:
        """Checks what the callback says of itself. Of a class that makes an attribute by a property
        its instances will say.

        Raises:
            PluginError: an attribute has a value that it cannot have.
        """
        for name in (
            "state_key",
            "state_key_aliases",
            "state_version",
            "passes",
            "logs_metrics",
        ):  # whose properties check them
            if not isinstance(getattr(self.callback, name, None), property):
                getattr(self, name)
        for name in (
            *("critical", "needs_every_update", "needs_output_dir", "restores_weights"),
            "state_per_process",
        ):
            value = getattr(self.callback, name, False)
            if not isinstance(value, (bool, property)):
                raise PluginError(
                    f"{self.label}: {name} of {describe(self.callback)} must be True or False, got "
                    f"{show(value)}."
                )
        hookspecs = inspect.getattr_static(self.callback, "hookspecs", None)
        is_submodule = isinstance(hookspecs, ModuleType) and isinstance(self.callback, ModuleType)
        if not (hookspecs is None or isinstance(hookspecs, (type, property)) or is_submodule):
            raise PluginError(
                f"{self.label}: hookspecs of {describe(self.callback)} must be a class whose "
                f"methods are hooks, got {show(hookspecs)}."
            )
        for name in ("renamed_options", "removed_options"):
            value = getattr(self.callback, name, {})
            if not isinstance(value, Mapping) or not all(map(_is_name, (*value, *value.values()))):
                raise PluginError(
                    f"{self.label}: {name} of {describe(self.callback)} must map names to texts, "
                    f'got {show(value)}. Write {name} = {{"old": "new"}}.'
                )
        prefix = getattr(self.callback, "option_prefix", None)
        if not isinstance(prefix, (str, property, type(None))):
            raise PluginError(
                f"{self.label}: option_prefix of {describe(self.callback)} must be a str, got "
                f"{show(prefix)}. Leave it out for the entry point's name."
            )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def identify(callback: object, index: int, entries: Sequence[Entry]) -> Plugin:
    """Names what was handed over in code, from the metadata of what is installed.

    Raises:
        PluginError: it is a class.
    """
    given, where = callback, f"callbacks[{index}]"
    if isinstance(given, Plugin):
        callback, where = given.callback, given.label
    if isinstance(callback, type):
        name = callback.__name__
        raise PluginError(f"{where} is the class {name}, not an instance. Write {name}().")
    if isinstance(given, Plugin):
        return given
    for entry in entries:
        target = entry.find_loaded()
        if target is not None and (target is callback or target is type(callback)):
            return Plugin(callback, entry.name, entry.distribution, entry.version)
    return Plugin(callback, describe(callback))


def list_callbacks(callbacks: object) -> list[object]:
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
