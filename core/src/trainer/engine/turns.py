"""The iterators that a loop goes through, and the refusal of calls that have no meaning there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer_callback import UsageError

from ..step.update import Updater

__all__ = ["RunOrderError", "Turns", "check_stepped", "refuse"]


class RunOrderError(UsageError, RuntimeError):
    """A method of `Run` was called where it has no meaning."""


class Turns(Iterator[Any]):
    """An iterator whose whole state is the run's: it may be held, left or dropped at any place."""

    def __init__(self, take: Callable[[], Any]) -> None:
        """Takes what returns the next item."""
        self._take = take

    def __next__(self) -> Any:
        return self._take()

    def end(self) -> None:
        """From now on it has no more, for what it went through is over."""
        self._take = iter(()).__next__


def refuse(is_wrong: bool, what: str, way: str) -> None:
    """Raises a RunOrderError where `what` is called and `is_wrong`; `way` says what to do."""
    if is_wrong:
        raise RunOrderError(f"run.{what} has no meaning here: {way}.")


def check_stepped(updaters: Mapping[str, Updater], update: int) -> None:
    """Refuses the end of an update that would drop what backward passes gave an optimizer.

    Raises:
        RunOrderError: one has gradients left, for its step was not taken.
    """
    for name, updater in updaters.items():
        if any(parameter.grad is not None for parameter in updater.gradients.own):
            raise RunOrderError(
                f"update {update} ends with gradients of {name!r} and without run.step({name!r}). "
                "Call it in the batch that ends an update, or name in run.backward what the loss "
                "is for."
            )
