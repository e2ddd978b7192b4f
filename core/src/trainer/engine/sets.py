"""The validation of a `Trainer`: what is measured in each of its sets, and the hooks that surround
a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from ..data.loaders import EpochLoader
from ..step.validation import CutError
from .assembly import Setup
from .measure import Measure, MeasuredSet

__all__ = ["ONLY", "Sets", "name_in_words"]

ONLY: Final = "val"
"""The name of a set that is alone."""


def name_in_words(name: str) -> str:
    """Returns how messages call a set: "the ... loader"."""
    return "validation" if name == ONLY else f"{name!r} validation"


class Sets:
    """The validation sets of a run."""

    def __init__(self, setup: Setup, loaders: Mapping[str, EpochLoader], measure: Measure) -> None:
        """Keeps references.

        Args:
            setup: of the run.
            loaders: set -> its batches; `ONLY` where its name is not to be seen.
            measure: what is measured in each.
        """
        self._setup, self._measure = setup, measure
        self._view, self._ranks, self._callbacks = setup.view, setup.ranks, setup.view.manager
        self._sets = {
            name: measure.take(each, name_in_words(name)) for name, each in loaders.items()
        }

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss` and other `val_NAME`; of several sets those of the first one, and all
        as `SET/NAME`. Raises what `Measure.over` does.
        """
        return _name({name: self._validate(name, each) for name, each in self._sets.items()})

    @property
    def names(self) -> list[str]:
        """The names of what a call returns; `NAME_*` where a metric may answer several numbers."""
        return [*_name(dict.fromkeys(self._sets, dict.fromkeys(self._measure.names)))]

    def _validate(self, name: str, each: MeasuredSet) -> dict[str, float]:
        hook, view = self._callbacks.hook, self._view
        shows = "on_validation_batch_end" in self._callbacks.used
        hook.on_validation_set_start(trainer=view, name=name)
        try:
            found = self._measure.over(
                each,
                is_cut=self._setup.decider.is_signalled,
                show=partial(self._show, name) if shows else None,
            )
        except CutError:
            hook.on_validation_set_end(trainer=view, name=name, metrics={})
            raise
        hook.on_validation_set_end(trainer=view, name=name, metrics=found)
        return found

    def _show(self, name: str, index: int, batch: Any, loss: Any, outputs: Any) -> None:
        """Calls the hook behind a batch, where no process may wait for another."""
        self._ranks.is_in_update = True
        try:
            self._callbacks.hook.on_validation_batch_end(
                trainer=self._view,
                name=name,
                batch_idx=index,
                batch=batch,
                loss=loss,
                outputs=outputs,
            )
        finally:
            self._ranks.is_in_update = False


def _name(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what was found in each set by the names that people see."""
    first = next(iter(found.values()))
    named = {f"val_{name}": value for name, value in first.items()}
    for name, values in found.items() if [*found] != [ONLY] else ():
        named.update({f"{name}/{key}": value for key, value in values.items()})
    return named
