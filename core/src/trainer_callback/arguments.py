"""What a callback is handed and must not change for others: each one gets a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

__all__ = ["COPIES", "CheckpointView"]


class CheckpointView(Mapping[str, Any]):
    """A checkpoint as one callback sees it: read-only, and what is read is copied first, once.

    So a callback pays for the parts that it looks at, not for the weights of the model.
    """

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self._checkpoint = checkpoint
        self._copies: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self._checkpoint[key])
        return self._copies[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return len(self._checkpoint)


COPIES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "metrics": dict,
    "result": copy.deepcopy,
    "checkpoint": CheckpointView,
}
"""Argument -> what makes the copy. The others are immutable, or shared by design."""
