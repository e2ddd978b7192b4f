"""What the commands show of a plugin, as plain data: enough for a list and a help without its
import.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from ..errors import PluginError
from .groups import Group, ShownGroup

__all__ = ["Described", "Description"]


@dataclass(frozen=True)
class Description:
    """What is known of a plugin that was imported before, or elsewhere.

    Attributes:
        kind: `flag`, `live` or `broken`.
        problem: why it is broken, or None.
        hooks: the run hooks that it implements.
        set_up: the set-up hooks that it implements.
        brings: the hooks of its own, `name(arguments)`.
        needs_others: it is refused for a hook that another plugin may bring.
        before, after: names of plugins, as its class has them.
        state_key: of what is live; else None.
        changed: what its import did to the process and was undone.
        seconds: how long its import took.
        brings_torch: its import imports torch.
        ends_process: its import ended the whole process, and is not tried in this one.
        refusal: why a command line cannot have its options, or None.
        rows: its options for a list: `flag`, `type`, `default`, `required`, `help`.
        actions: its options as argparse shows them.
        oddities: what is hardly meant so, each as a problem and an advice.
    """

    kind: Literal["flag", "live", "blocked", "broken"]
    problem: str | None = None
    hooks: list[str] = field(default_factory=list)
    set_up: list[str] = field(default_factory=list)
    brings: list[str] = field(default_factory=list)
    needs_others: bool = False
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    state_key: str | None = None
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    brings_torch: bool = False
    ends_process: bool = False
    refusal: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)
    oddities: list[list[str]] = field(default_factory=list)

    def make_group(self, label: str) -> Group:
        """Returns its options, to be shown.

        Raises:
            PluginError: a command line cannot have them.
        """
        if self.refusal is not None:
            raise PluginError(self.refusal)
        return ShownGroup(label, self.actions)

    @property
    def stand_in(self) -> object:
        """What has the attributes that decide the order of the callbacks."""
        return SimpleNamespace(before=self.before, after=self.after, state_key=self.state_key)


class Described(NamedTuple):
    """A description, and what it depends on: as `Sources.read` returns it, or None."""

    description: Description
    sources: dict[str, Any] | None
