"""What a callback is handed and must not change for others: each one gets a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

__all__ = ["TENSORS", "CheckpointView", "find_copier"]

TENSORS: Final = frozenset({"loss", "total_norm", "clipped"})
"""Arguments that are tensors. The caller has made a copy for the hook, which does for one taker."""


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


def find_copier(argument: str, key: str, name: str, *, shared: bool) -> Callable[[Any], Any] | None:
    """Returns what makes the copy of an argument for one callback. None where none is needed: it is
    immutable, or shared by design (the batch, the trainer).

    Args:
        key: the callback's state key.
        name: the name of its class.
        shared: others ask for the argument in this hook, too.
    """
    if argument in TENSORS:
        return _clone if shared else None
    if argument == "state":
        return partial(_pick_state, key)
    if argument == "checkpoint":
        return partial(CheckpointView, key=key, name=name)
    return _COPIES.get(argument)


def _clone(tensor: Any) -> Any:
    return None if tensor is None else tensor.clone()


def _pick_state(key: str, states: Mapping[str, Any] | None) -> Any:
    """`on_snapshot_load` is called with the states of all; each callback is handed its own."""
    return copy.deepcopy((states or {}).get(key))


_COPIES: Final[Mapping[str, Callable[[Any], Any]]] = {"metrics": dict, "result": copy.deepcopy}
