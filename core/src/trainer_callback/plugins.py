"""The installed plugins: loaded with care, offered as options, made into callbacks."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from .discovery import Entry, find_entries
from .errors import PluginError
from .hookspecs import OptionParser, TrainerCallback
from .implementation import Implementation, closest, describe, find_implementations
from .manager import Plugin
from .options import Option, add_flag, add_options, collect_options, read_options

__all__ = ["InstalledPlugin", "create", "discover", "find_live", "read_one_off"]

logger = logging.getLogger("trainer")

_SETUP = ("add_options", "make_callbacks")


class InstalledPlugin:
    """One plugin, as far as it could be loaded.

    Attributes:
        entry: where it comes from.
        kind: `flag` (a class: a flag makes the callback), `live` (a module or object: in every
            run), `blocked`, or `broken`.
        problem: why it is blocked or broken, else None.
        target: the class, module or object; None where it was not loaded.
        implementations: its hooks.
        options: the options derived from its constructor.
    """

    def __init__(self, entry: Entry, *, active: bool = False) -> None:
        """Loads the plugin unless it is blocked; what goes wrong is kept in `problem`.

        Args:
            active: a class needs no flag to be used (`--callback MODULE:CLASS`).
        """
        self.entry = entry
        self.kind: Literal["flag", "live", "blocked", "broken"] = "blocked"
        self.problem = entry.problem
        self.target: object = None
        self.implementations: list[Implementation] = []
        self.options: list[Option] = []
        self._active = active
        if self.problem is None:
            try:
                self._load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit included: a plugin must not end the command
                self.kind, self.problem = "broken", _explain(entry, error)

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        return self.entry.label

    @property
    def hooks(self) -> list[str]:
        """The run hooks that it implements, in the order of the hooks."""
        found = [each.hook for each in self.implementations if each.hook not in _SETUP]
        return list(dict.fromkeys(found))

    def add_options(self, parser: OptionParser) -> None:
        """Adds the flag and the derived options, or what the plugin's own `add_options` adds, to
        its group.
        """
        if self._derives_options and not self._active:
            add_flag(parser, self.entry.name, f"use {describe(self.target)}")
        if self._derives_options:
            add_options(parser, self.options)
        if self._implements("add_options"):
            self._call("add_options", parser)

    def make_callbacks(self, namespace: Any) -> list[Plugin]:
        """Returns the callbacks that the parsed options ask for, the plugin's own hooks included
        where it is live.

        Raises:
            PluginError: an option without its flag, a required one that is missing, or the
                constructor's own refusal.
        """
        made: list[object] = []
        if self.kind == "live" and self.hooks:
            made.append(self.target)
        if self._implements("make_callbacks"):
            made.extend(self._call("make_callbacks", namespace) or ())
        elif self._derives_options and self._is_asked_for(namespace):
            made.append(self._build(collect_options(namespace, self.options)))
        entry = self.entry
        return [Plugin(each, entry.name, entry.distribution, entry.version) for each in made]

    def create(self, **options: Any) -> Plugin:
        """Returns the callback made with `options`.

        Raises:
            PluginError: it is blocked, broken or no class, or its constructor refuses.
        """
        if self.problem is not None:
            raise PluginError(
                self.problem if self.kind == "broken" else f"{self.label} is {self.problem}."
            )
        if self.kind != "flag":
            raise PluginError(f"{self.label} is live in every run; there is nothing to create.")
        entry = self.entry
        return Plugin(self._build(options), entry.name, entry.distribution, entry.version)

    @property
    def _derives_options(self) -> bool:
        return self.kind == "flag" and not self._implements("make_callbacks")

    def _load(self) -> None:
        self.target = self.entry.load()
        if isinstance(self.target, type) and not issubclass(self.target, TrainerCallback):
            raise PluginError(f"{describe(self.target)} is a class but no TrainerCallback.")
        self.implementations = find_implementations(self.target)
        self.kind = "live"
        if isinstance(self.target, type):
            self.kind = "flag"
            if not self._implements("make_callbacks"):
                prefix = getattr(self.target, "option_prefix", None) or f"{self.entry.name}_"
                self.options = read_options(self.target, prefix, skip=("state_key",))

    def _implements(self, hook: str) -> bool:
        return any(each.hook == hook for each in self.implementations)

    def _is_asked_for(self, namespace: Any) -> bool:
        name = self.entry.name
        asked = getattr(namespace, name, None)
        given = [option.flag for option in self.options if hasattr(namespace, option.flag)]
        if given and asked is None and not self._active:
            raise PluginError(
                f"--{given[0]} is given without --{name}, so it would do nothing. Add --{name}."
            )
        return self._active or bool(asked)

    def _build(self, arguments: dict[str, Any]) -> object:
        missing = [o for o in self.options if o.required and o.parameter not in arguments]
        if missing:
            raise PluginError(
                f"{self.label} needs {missing[0].parameter!r}. Give --{missing[0].flag}."
            )
        assert isinstance(self.target, type)
        try:
            return self.target(**arguments)
        except (ValueError, TypeError) as error:
            raise PluginError(f"{self.label}: {error}") from error
        except Exception as error:
            raise PluginError(
                f"{self.label} could not be built: {type(error).__name__}: {error}"
            ) from error

    def _call(self, hook: str, argument: object) -> Any:
        attribute = next(each.attribute for each in self.implementations if each.hook == hook)
        function = getattr(self.target, attribute)
        try:
            return function(argument) if function.__code__.co_argcount else function()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{self.label} failed in {hook}: {type(error).__name__}: {error}"
            ) from error


def discover(blocked: Iterable[str] = ()) -> list[InstalledPlugin]:
    """Returns every installed plugin by name, loaded unless blocked. Nothing is printed."""
    return [InstalledPlugin(entry) for entry in find_entries(blocked)]


def find_live(blocked: Iterable[str] = ()) -> list[Plugin]:
    """Returns the modules and objects that are live in every run; warns of each plugin that could
    not be loaded.
    """
    live = []
    for plugin in discover(blocked):
        if plugin.kind == "broken":
            logger.warning("%s", plugin.problem)
        elif plugin.kind == "live" and plugin.hooks:
            entry = plugin.entry
            live.append(Plugin(plugin.target, entry.name, entry.distribution, entry.version))
    return live


def create(name: str, **options: Any) -> Plugin:
    """Returns the callback of the installed plugin `name`, made with `options`, for
    `Trainer(callbacks=[...])`.

    Raises:
        PluginError: there is no such plugin, or it cannot be used.
    """
    entries = {entry.name: entry for entry in find_entries()}
    if name not in entries:
        names = ", ".join(entries) or "none"
        raise PluginError(
            f"no plugin {name!r} is installed.{closest(name, entries)} Installed: {names}."
        )
    return InstalledPlugin(entries[name]).create(**options)


def read_one_off(value: str) -> InstalledPlugin:
    """Returns the plugin of `--callback MODULE:CLASS`, a module of the current directory that is
    not installed.

    Its name is the module's, without a leading `trainer_`.

    Raises:
        PluginError: it cannot be used.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    name = value.partition(":")[0].split(".")[-1].removeprefix("trainer_")
    plugin = InstalledPlugin(Entry(name, value, "", ""), active=True)
    if plugin.problem is not None:
        raise PluginError(plugin.problem)
    return plugin


def _explain(entry: Entry, error: BaseException) -> str:
    if isinstance(error, PluginError):
        return f"{entry.label}: {error}"
    origin = f" of {entry.distribution} {entry.version}" if entry.distribution else ""
    return (
        f"entry point {entry.name!r}{origin} could not be imported: "
        f"{type(error).__name__}: {error}. Its options are missing."
    )
