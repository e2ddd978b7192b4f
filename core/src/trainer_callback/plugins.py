"""The installed plugins: loaded with care, offered as options, made into callbacks."""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from .discovery import Entry, canonical, find_entries
from .errors import PluginError, UsageError
from .hookspecs import OptionParser, TrainerCallback
from .identity import Plugin
from .implementation import (
    SETUP_HOOKS,
    Implementation,
    closest,
    describe,
    find_implementations,
)
from .options import Option, add_flag, add_options, collect_options, read_options

__all__ = ["InstalledPlugin", "create", "discover", "find_live", "read_one_off"]

logger: logging.Logger = logging.getLogger("trainer")


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
        """Loads the plugin unless it is not to be used; what goes wrong is kept in `problem`.

        Args:
            active: a class needs no flag to be used (`--callback MODULE:CLASS`).
        """
        self.entry = entry
        self.kind: Literal["flag", "live", "blocked", "broken"]
        self.kind = "blocked" if entry.blocked else "broken"
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
                self.target, self.implementations, self.options = None, [], []

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        return self.entry.label

    @property
    def hooks(self) -> list[str]:
        """The run hooks that it implements, in the order of the hooks."""
        found = [each.hook for each in self.implementations if each.hook not in SETUP_HOOKS]
        return list(dict.fromkeys(found))

    def add_options(self, parser: OptionParser) -> None:
        """Adds the flag and the derived options, or what the plugin's own `add_options` adds, to
        its group.

        Raises:
            argparse.ArgumentError: a flag is taken already.
            PluginError: its own `add_options` failed.
        """
        if self._derives_options and not self._active:
            add_flag(parser, self.entry.flag, f"use {describe(self.target)}")
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
            made.extend(self._read_made(self._call("make_callbacks", namespace)))
        elif self._derives_options and self._is_asked_for(namespace):
            made.append(self._build(collect_options(namespace, self.options)))
        return [self._name(each) for each in made]

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
        return self._name(self._build(options))

    @property
    def _derives_options(self) -> bool:
        return self.kind == "flag" and not self._implements("make_callbacks")

    def _load(self) -> None:
        self.target = self.entry.load()
        if isinstance(self.target, type) and not issubclass(self.target, TrainerCallback):
            raise PluginError(f"{describe(self.target)} is a class but no TrainerCallback.")
        self.implementations = find_implementations(self.target)
        self._name(self.target).check()
        self.kind = "live"
        if isinstance(self.target, type):
            self.kind = "flag"
            if not self._implements("make_callbacks"):
                own = getattr(self.target, "option_prefix", None)
                prefix = f"{self.entry.flag}_" if own is None else own.replace("-", "_")
                self.options = read_options(self.target, prefix, skip=("state_key",))

    def _implements(self, hook: str) -> bool:
        return any(each.hook == hook for each in self.implementations)

    def _is_asked_for(self, namespace: Any) -> bool:
        flag = self.entry.flag
        asked = getattr(namespace, flag, None)
        given = [option.flag for option in self.options if hasattr(namespace, option.flag)]
        if given and asked is None and not self._active:
            raise PluginError(
                f"--{given[0]} is given without --{flag}, so it would do nothing. Add --{flag}."
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
        except (ValueError, TypeError, UsageError) as error:
            raise PluginError(f"{self.label}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{self.label} could not be built: {type(error).__name__}: {error}"
            ) from error

    def _call(self, hook: str, argument: object) -> Any:
        """Calls a set-up hook, which takes its one argument or none."""
        attribute = next(each.attribute for each in self.implementations if each.hook == hook)
        function = getattr(self.target, attribute)
        taken = inspect.signature(function).parameters
        try:
            return function(**dict.fromkeys(taken, argument))
        except (KeyboardInterrupt, argparse.ArgumentError):
            raise
        except UsageError as error:
            raise PluginError(f"{self.label}: {error}") from error
        except BaseException as error:
            raise PluginError(
                f"{self.label} failed in {hook}: {type(error).__name__}: {error}"
            ) from error

    def _read_made(self, answer: object) -> Iterable[object]:
        if answer is None or isinstance(answer, (list, tuple)):
            return answer or ()
        raise PluginError(
            f"{self.label}: make_callbacks must return a list of callbacks or None, got "
            f"{describe(answer)}."
        )

    def _name(self, callback: object) -> Plugin:
        return Plugin(callback, self.entry.name, self.entry.distribution, self.entry.version)


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


def create(name: str, **options: Any) -> TrainerCallback:
    """Returns the callback of the installed plugin `name`, made with `options`, for
    `Trainer(callbacks=[...])`.

    Raises:
        PluginError: there is no such plugin, or it cannot be used.
    """
    entries: dict[str, Entry] = {}
    for entry in find_entries():
        entries.setdefault(entry.flag, entry)
    wanted = canonical(name)
    if wanted not in entries:
        names = ", ".join(entries) or "none"
        raise PluginError(
            f"no plugin {name!r} is installed.{closest(wanted, entries)} Installed: {names}."
        )
    callback = InstalledPlugin(entries[wanted]).create(**options).callback
    assert isinstance(callback, TrainerCallback)
    return callback


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
    module, _, attribute = value.partition(":")
    module = module.removesuffix(".py")
    name = module.rpartition(".")[2].removeprefix("trainer_")
    entry = Entry(name, f"{module}:{attribute}" if attribute else module, "", "")
    plugin = InstalledPlugin(entry, active=True)
    if plugin.problem is not None:
        raise PluginError(f"--callback {value}: {plugin.problem}")
    return plugin


def _explain(entry: Entry, error: BaseException) -> str:
    if isinstance(error, PluginError):
        return f"{entry.label}: {error}"
    what = f"{type(error).__name__}: {error}"
    if not entry.distribution:
        return f"{entry.value} could not be imported: {what}."
    return (
        f"entry point {entry.name!r} of {entry.distribution} {entry.version} could not be "
        f"imported: {what}. Its options are missing."
    )
