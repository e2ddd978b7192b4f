"""The iterators that a loop goes through, and the refusal of calls that have no meaning there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trainer_callback import UsageError

__all__ = ["RunOrderError", "Turns", "refuse"]


class RunOrderError(UsageError, RuntimeError):
    """A method of `Run` was called where it has no meaning."""


class Turns(Iterator[Any]):
    """An iterator whose whole state is the run's: it may be held, left or dropped at any place."""

    def __init__(self, take: Callable[[], Any]) -> None:
        """Takes what returns the next item."""
        self._take = take

    def __next__(self) -> Any:
        return self._take()


def refuse(is_wrong: bool, what: str, way: str) -> None:
    """Raises a RunOrderError where `what` is called and `is_wrong`; `way` says what to do."""
    if is_wrong:
        raise RunOrderError(f"run.{what} has no meaning here: {way}.")
