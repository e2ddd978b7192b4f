"""Who has changed the model or the optimizer in a run, so that no resume fits it: snapshots note
it, and one that does not fit names it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, Final

from trainer_callback import SnapshotError
from trainer_callback.calls.identity import Plugin

__all__ = ["describe_changes", "naming_changes"]

_KEY: Final = "structure"
_CALLS: Final = frozenset(
    {
        *("add_param_group", "param_groups", "requires_grad_", "requires_grad", "Parameter"),
        *("add_module", "register_module", "register_parameter", "register_buffer"),
        *("set_submodule", "setattr", "_modules"),
    }
)
"""What code calls that changes the structure of a model or an optimizer."""


def describe_changes(changed: str | None, plugins: Sequence[Plugin]) -> dict[str, Any]:
    """Returns what a snapshot notes of a change, as plain JSON.

    Args:
        changed: what is new in the model or the optimizer since the run began; None: nothing.
        plugins: the callbacks of the run.
    """
    if changed is None:
        return {}
    likely = [each.label for each in plugins if _may_change(each)]
    return {_KEY: {"changed": changed, "likely": likely}}


@contextlib.contextmanager
def naming_changes(manifest: Mapping[str, Any]) -> Iterator[None]:
    """Says, where a snapshot does not fit, what has changed the structure in its run.

    Raises:
        SnapshotError: the same, with more to do.
    """
    try:
        yield
    except SnapshotError as error:
        noted = manifest.get(_KEY)
        if not isinstance(noted, Mapping):
            raise
        likely = " or ".join(noted.get("likely", ())) or "a callback"
        raise SnapshotError(
            f"{error} In the run that wrote it, {noted.get('changed')} while it went on, probably "
            f"by {likely}. A callback that changes the structure has to do so again in on_setup, "
            "which is called before a snapshot is loaded."
        ) from error


def _may_change(plugin: Plugin) -> bool:
    """Whether the code of a callback's own class has a name that changes a structure."""
    if plugin.distribution == "trainer-core":
        return False
    found: list[CodeType] = []
    for kind in inspect.getmro(type(plugin.callback)):
        if not kind.__module__.startswith(("trainer_callback.", "builtins")):
            found += [each.__code__ for each in vars(kind).values() if inspect.isfunction(each)]
    return any(not _CALLS.isdisjoint(names) for names in _names(found))


def _names(codes: list[CodeType]) -> Iterator[Sequence[str]]:
    for code in codes:
        yield code.co_names
        yield from _names([each for each in code.co_consts if isinstance(each, CodeType)])
