"""What a callback is handed and must not change for others: each one gets a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "CheckpointView",
    "clone",
    "copy_mapping",
    "copy_result",
    "pick_state",
    "view_checkpoint",
]


class CheckpointView(Mapping[str, Any]):
    """A checkpoint as one callback sees it: read-only, and what is read is copied first, once.

    So a callback pays for the parts that it looks at, not for the weights of the model. Its own
    state stands under the name of its class, too, if its key is another.
    """

    def __init__(self, checkpoint: Mapping[str, Any], key: str = "", name: str = "") -> None:
        """Makes the view of the callback with the state key `key` and the class `name`."""
        self._checkpoint = checkpoint
        self._key = key
        self._name = name
        self._copies: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self._checkpoint[key])
            if key == "callback_state" and self._name != self._key:
                self._add_own_name(self._copies[key])
        return self._copies[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return len(self._checkpoint)

    def _add_own_name(self, states: dict[str, Any]) -> None:
        """A callback that looks under its class name means its own state, not that of another of
        its class.
        """
        states.pop(self._name, None)
        if self._key in states:
            states[self._name] = states[self._key]


def view_checkpoint(checkpoint: Mapping[str, Any] | None, key: str, name: str) -> Any:
    """Returns the callback's own view of a checkpoint, if there is one."""
    return None if checkpoint is None else CheckpointView(checkpoint, key, name)


def clone(tensor: Any, key: str, name: str) -> Any:
    """Returns a tensor of the callback's own."""
    return None if tensor is None else tensor.clone()


def copy_mapping(values: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """Returns a dict of the callback's own."""
    return dict(values)


def copy_result(result: Any, key: str, name: str) -> Any:
    """Returns a result of the callback's own, lists and dicts in it included."""
    return copy.deepcopy(result)


def pick_state(states: Mapping[str, Any] | None, key: str, name: str) -> Any:
    """`on_snapshot_load` is called with the states of all; each callback is handed its own."""
    return copy.deepcopy((states or {}).get(key))
