"""An installed plugin: loaded with care, offered as options, made into callbacks."""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from ..calls.extensions import explain_absent, merge_hooks, read_hooks
from ..calls.identity import Plugin
from ..calls.implementation import Implementation, describe, find_implementations
from ..calls.naming import UnknownHookError
from ..calls.order import arrange
from ..discovery import Entry, explain_import
from ..errors import PluginError, UsageError, text_of
from ..hookspecs import SPECS, TrainerCallback
from ..specs import HookSpec
from .description import Description
from .groups import Group, read_group
from .guard import stdout_to_stderr, undo_changes
from .old_options import OldOptions, read_old_options
from .options import (
    Option,
    add_flag,
    add_options,
    build,
    collect_options,
    read_options,
    read_prefix,
)

__all__ = ["InstalledPlugin"]

logger: logging.Logger = logging.getLogger("trainer")


class InstalledPlugin:
    """One plugin, as far as it could be loaded.

    Attributes:
        entry: where it comes from.
        kind: `flag` (a class: a flag makes the callback), `live` (a module or object: in every
            run), `blocked`, or `broken`.
        problem: why it is blocked or broken, else None.
        matters: whether a run without it is another run, so that its problem is worth a word.
        target: the class, module or object; None where it was not loaded.
        implementations: its hooks.
        options: the options derived from its constructor.
        is_requested: somebody asks for it, so that what goes wrong with it is no mere warning.
        old: what its options were called before.
        brings: the hooks of its own, by name.
        unknown: the hook for which it was refused: one that another plugin may bring; or None.
        changed: what its import did to the process and was undone: `set a signal handler`.
        seconds: how long the import took.
        description: what is known of it where it is not loaded, else None.
    """

    def __init__(
        self, entry: Entry, *, active: bool = False, description: Description | None = None
    ) -> None:
        """Loads the plugin unless it is described, or is not to be used; what goes wrong is kept in
        `problem`.

        Args:
            active: a class needs no flag to be used (`--callback MODULE:CLASS`).
        """
        self.entry = entry
        self.kind: Literal["flag", "live", "blocked", "broken"]
        self.kind = "blocked" if entry.blocked else "broken"
        self.problem = entry.problem
        self.matters: bool = True
        self.target: object = None
        self.implementations: list[Implementation] = []
        self.options: list[Option] = []
        self.old: OldOptions = OldOptions()
        self.brings: dict[str, HookSpec] = {}
        self.unknown: UnknownHookError | None = None
        self._known: dict[str, HookSpec] = SPECS
        self.is_requested = True
        self.changed: list[str] = []
        self.seconds: float = 0.0
        self.description = description
        self._active = active
        self._group: Group | None = None
        if self.problem is None or entry.is_ambiguous:
            self._load_safely() if description is None else self._read(description)
        if entry.is_ambiguous:
            is_described = getattr(description, "kind", "") == "flag"
            self.matters = not (isinstance(self.target, type) or is_described)
            self.exclude(str(entry.problem))

    def load(self) -> None:
        """Imports what was only described, unless its name, or what it does, forbids that."""
        if (known := self.description) and not (known.ends_process or self.entry.is_ambiguous):
            self.description = self._group = None
            self._load_safely()

    @property
    def label(self) -> str:
        """The name with distribution and version, for people."""
        return self.entry.label

    @property
    def hooks(self) -> list[str]:
        """The run hooks that it implements, in the order of the hooks."""
        if self.description is not None:
            return self.description.hooks
        found = [each.hook for each in self.implementations if not each.spec.set_up]
        return list(dict.fromkeys(found))

    @property
    def is_callback(self) -> bool:
        """Whether its target is a callback of every run."""
        known = self.description
        brings = self.brings if known is None else known.brings
        return self.kind == "live" and bool(self.hooks or brings)

    @property
    def record(self) -> Plugin:
        """Its target, or what stands in for it, named."""
        return self._name(self.description.stand_in if self.description else self.target)

    @property
    def group(self) -> Group:
        """Its options: the flag and the derived ones, and those of its own `add_options`. Tried
        when first asked for.

        Raises:
            PluginError: they cannot be used, or would change more than themselves.
        """
        if self._group is None and self.description is not None:
            self._group = self.description.make_group(self.label)
        if self._group is None:
            try:
                with undo_changes() as changed:
                    own_builder = self._implements("make_callbacks")
                    self._group = read_group(self.label, self._fill, may_replace=own_builder)
            except ValueError as error:
                raise PluginError(f"{self.label} {error}.") from error
            self.changed += [what for what in changed if what not in self.changed]
            kept = self._group.flags
            self.options = [option for option in self.options if f"--{option.flag}" in kept]
        return self._group

    def is_named(self, given: Collection[str]) -> bool:
        """Whether the options `given`, each as `--flag`, ask for it by its name."""
        return self._active or f"--{self.entry.flag}" in given

    def know_hooks(self, others: Sequence[InstalledPlugin]) -> None:
        """Looks again at a plugin that was refused for a hook, now that it is known which hooks
        `others` bring. One that is live has only those of other live ones, for these alone are in
        every run with it.
        """
        if self.unknown is None or self.entry.is_ambiguous:
            return
        error, is_live = self.unknown, not isinstance(self.target, type)
        bringers = [each for each in others if each.brings]
        present = [each.record for each in bringers if not (is_live and each.kind == "flag")]
        self._known, self.unknown = merge_hooks(present), None
        self._load_safely()
        if self.unknown is not None:
            where, every = "every run with it", [each.record for each in bringers]
            self.problem = explain_import(self.entry, explain_absent(error, every, where))
            self._forget()

    def exclude(self, problem: str) -> None:
        """Leaves it out, for the reason `problem`."""
        self.kind, self.problem = "broken", problem

    def make_callbacks(self, namespace: Any) -> list[Plugin]:
        """Returns the callbacks that the parsed options ask for, the plugin's own hooks included
        where it is live.

        Raises:
            PluginError: an option without its flag, a required one that is missing, or the
                constructor's own refusal.
        """
        made: list[object] = [self.target] if self.is_callback else []
        if self._implements("make_callbacks"):
            try:
                answer = self._read_made(self._call("make_callbacks", self._view(namespace)))
            except PluginError as error:
                if self.is_requested or isinstance(error.__cause__, UsageError):
                    raise
                logger.warning("%s. The run goes on without it.", str(error).rstrip("."))
                return []
            if not answer and self.kind == "flag" and getattr(namespace, self.entry.flag, False):
                raise PluginError(
                    f"{self.label}: its make_callbacks returns nothing for --{self.entry.flag}. "
                    "Leave the flag out, or give what else the plugin needs."
                )
            made.extend(answer)
        elif self.kind == "flag" and self._is_used(namespace):
            made.append(self._build(collect_options(namespace, self.options)))
        if made:
            self.tell_changes()
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
        self.tell_changes()
        return self._name(self._build(self.old.translate(self.label, options)))

    def tell_changes(self) -> None:
        """Warns, once, of what its import would have changed in a run that uses it."""
        if self.changed:
            text = (
                "%s: its import %s. What it set was put back: a plugin changes a run in "
                "on_train_start or in its constructor."
            )
            logger.warning(text, self.label, ", ".join(self.changed))
            self.changed = []

    def _read(self, known: Description) -> None:
        self.kind, self.problem = known.kind, known.problem
        self.changed, self.seconds = known.changed, known.seconds

    def _load_safely(self) -> None:
        start = time.perf_counter()
        self.problem = None
        try:
            with undo_changes() as self.changed:
                self._load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit included: a plugin must not end the command
            self.kind, self.problem = "broken", explain_import(self.entry, error)
            self.unknown = error if isinstance(error, UnknownHookError) else None
            if self.unknown is None:
                self._forget()
        self.seconds = time.perf_counter() - start

    def _forget(self) -> None:
        self.target, self.implementations, self.options, self.brings = None, [], [], {}

    def _load(self) -> None:
        self.target = self.entry.load()
        if isinstance(self.target, type) and not issubclass(self.target, TrainerCallback):
            raise PluginError(f"{describe(self.target)} is a class but no TrainerCallback.")
        self.record.check()
        self.brings = read_hooks(self.record)
        known = {**self._known, **self.brings}
        self.implementations = find_implementations(self.target, known)
        arrange([self.record])  # checks `before` and `after`
        self.kind = "live"
        if isinstance(self.target, type):
            self.kind = "flag"
            is_builder = self._implements("make_callbacks")
            prefix, skip = read_prefix(self.target, self.entry.flag), ("state_key",)
            self.options = read_options(self.target, prefix, skip, may_lack=is_builder)
            self.old = read_old_options(self.record, self.options, prefix)

    def _implements(self, hook: str) -> bool:
        return any(each.hook == hook for each in self.implementations)

    def _fill(self, group: argparse._ArgumentGroup) -> None:
        if self.kind == "flag" and not self._active:
            add_flag(group, self.entry.flag, f"use {describe(self.target)}")
        add_options(group, self.options)
        if self._implements("add_options"):
            self._call("add_options", group)
        self.old.add(group)

    def _view(self, namespace: Any) -> argparse.Namespace:
        """Returns a copy of what was parsed, in which the derived options have their defaults."""
        defaults = {o.flag: copy.copy(o.default) for o in self.options if not o.required}
        if self.kind == "flag":
            defaults[self.entry.flag] = self._active
        return argparse.Namespace(**{**defaults, **vars(namespace)})

    def _is_used(self, namespace: Any) -> bool:
        flag = self.entry.flag
        asked = getattr(namespace, flag, None)
        given = [option.flag for option in self.options if hasattr(namespace, option.flag)]
        if given and asked is None and not self._active:
            raise PluginError(
                f"--{given[0]} is given without --{flag}, so it would do nothing. Add --{flag}."
            )
        return self._active or bool(asked)

    def _build(self, arguments: Mapping[str, Any]) -> object:
        missing = [o for o in self.options if o.required and o.parameter not in arguments]
        if missing:
            raise PluginError(
                f"{self.label} needs {missing[0].parameter!r}. Give --{missing[0].flag}."
            )
        assert isinstance(self.target, type)
        try:
            with stdout_to_stderr():
                return build(self.target, arguments)
        except (ValueError, TypeError, UsageError) as error:
            raise PluginError(f"{self.label}: {text_of(error)}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{self.label} could not be built: {type(error).__name__}: {text_of(error)}"
            ) from error

    def _call(self, hook: str, argument: object) -> Any:
        """Calls a set-up hook, which takes its one argument or none."""
        found = next(each for each in self.implementations if each.hook == hook)
        try:
            with stdout_to_stderr():
                return found.function(**dict.fromkeys(found.asked, argument))
        except (KeyboardInterrupt, argparse.ArgumentError):
            raise
        except UsageError as error:
            raise PluginError(f"{self.label}: {text_of(error)}") from error
        except BaseException as error:
            raise PluginError(
                f"{self.label} failed in {hook}: {type(error).__name__}: {text_of(error)}"
            ) from error

    def _read_made(self, answer: object) -> Sequence[object]:
        if answer is not None and not isinstance(answer, (list, tuple)):
            raise PluginError(
                f"{self.label}: make_callbacks must return a list of callbacks or None, got "
                f"{describe(answer)}."
            )
        for each in answer or ():
            try:
                find_implementations(each)
            except UnknownHookError:
                continue  # who is in the run is known when all callbacks are made
            except PluginError as error:
                raise PluginError(f"{self.label}: make_callbacks returned {error}") from None
            if isinstance(each, type):
                name = each.__name__
                raise PluginError(
                    f"{self.label}: make_callbacks returned the class {name}, not an instance. "
                    f"Write {name}()."
                )
        return answer or ()

    def _name(self, callback: object) -> Plugin:
        return Plugin(callback, self.entry.name, self.entry.distribution, self.entry.version)
