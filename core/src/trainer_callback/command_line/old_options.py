"""Options that a plugin has renamed or removed: as hidden flags, and as keyword arguments."""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..calls.identity import Plugin
from ..errors import PluginError
from .options import Option

__all__ = ["OldOptions", "read_old_options"]


@dataclass(frozen=True)
class OldOptions:
    """What a plugin's constructor no longer calls so.

    Attributes:
        renamed: old parameter -> today's.
        removed: old parameter -> why, and what to do.
        prefix: of the plugin's flags.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    @property
    def flags(self) -> set[str]:
        """The hidden flags, without dashes, those that begin with `no_` left out."""
        return {self.prefix + name for name in (*self.renamed, *self.removed)}

    def add(self, group: argparse._ArgumentGroup) -> None:
        """Adds the old flags to a group that has today's, without a line in the help."""
        for old, new in self.renamed.items():
            for action in [each for each in group._actions if each.dest == self.prefix + new]:
                hidden = copy.copy(action)
                ends = (f"--{self.prefix}{new}", f"--no_{self.prefix}{new}")
                flags = [flag for flag in action.option_strings if flag in ends]
                hidden.option_strings = [f"{flag[: -len(new)]}{old}" for flag in flags]
                hidden.help = argparse.SUPPRESS
                if hidden.option_strings:
                    group._add_action(hidden)
        for old in self.removed:
            group.add_argument(
                f"--{self.prefix}{old}",
                f"--no_{self.prefix}{old}",
                dest=self.prefix + old,
                nargs="*",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )

    def translate(self, label: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the keyword arguments with today's names; warns of old ones.

        Raises:
            PluginError: one was removed, or is given under both names.
        """
        found = dict(arguments)
        for old in self.removed.keys() & arguments.keys():
            raise PluginError(f"{label}: {old!r} was removed: {self.removed[old]}")
        for old in self.renamed.keys() & arguments.keys():
            new = self.renamed[old]
            if new in arguments:
                raise PluginError(f"{label}: {old!r} is {new!r} now, and both are given. Keep it.")
            found[new] = found.pop(old)
            text = f"{label}: {old!r} is called {new!r} now."
            warnings.warn(text, DeprecationWarning, stacklevel=4)
        return found


def read_old_options(plugin: Plugin, options: Collection[Option], prefix: str) -> OldOptions:
    """Returns what the class of `plugin` says in `renamed_options` and `removed_options`.

    Raises:
        PluginError: an old name is a parameter today, or a new one is none.
    """
    known = {option.parameter for option in options}
    renamed: Mapping[str, str] = getattr(plugin.callback, "renamed_options", {})
    removed: Mapping[str, str] = getattr(plugin.callback, "removed_options", {})
    for old in (*renamed, *removed):
        if old in known or (old in renamed and old in removed):
            raise PluginError(
                f"{plugin.label}: {old!r} is an old name in renamed_options or removed_options, "
                "and is there otherwise, too. Keep one of them."
            )
    for old, new in renamed.items():
        if new not in known:
            raise PluginError(
                f"{plugin.label}: renamed_options says that {old!r} is {new!r} now, and the "
                "constructor has no such option. Name one that it has."
            )
    return OldOptions(renamed, removed, prefix)
