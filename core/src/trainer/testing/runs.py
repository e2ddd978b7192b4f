"""A callback, trained: whole, in parts, and what came of it."""

from __future__ import annotations

import importlib.util
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainResult, plugins
from trainer.writers.metrics_file import read_logged
from trainer_callback import CallbackError, PluginError, StateError, UsageError
from trainer_callback.command_line.guard import undo_changes

from .compare import find_difference, read_attributes
from .tiny import make_tiny_trainer

__all__ = [
    "DECISIONS",
    "Outcome",
    "build",
    "fail",
    "fresh",
    "make_others",
    "play",
    "read_state",
    "train",
    "train_if_it_suits",
]

DECISIONS: Final = (
    "status",
    "stop_reason",
    "stopped_by",
    "epochs",
    "steps",
    "train_loss",
    "val_loss",
)


@dataclass(frozen=True)
class Outcome:
    """What a run has left.

    Attributes:
        decisions: how it ended, and the losses on the way.
        state: of the callback, in the last snapshot; None where it has none.
        attributes: of the callback, in the end, as far as they are plain data.
        changed: names of the attributes that were others when the callback was made.
        metrics: the lines of `metrics.jsonl`, without the costs.
        weights: of the model, at the end.
    """

    decisions: dict[str, Any]
    state: Any
    attributes: dict[str, Any]
    changed: frozenset[str]
    metrics: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]

    def find_difference(self, other: Outcome, varying: Sequence[str]) -> str | None:
        """Returns the first thing that is different in `other`, in words, or None."""
        mine = {name: value for name, value in self.attributes.items() if name in self.changed}
        theirs = {name: value for name, value in other.attributes.items() if name in self.changed}
        pairs = {
            "result": (self.decisions, other.decisions),
            "state": (self.state, other.state),
            "attributes": (mine, theirs),
            "metrics.jsonl": (self.metrics, other.metrics),
            "weights": (self.weights, other.weights),
        }
        differences = (find_difference(*pair, name, varying) for name, pair in pairs.items())
        found = next((difference for difference in differences if difference), None)
        return found.removeprefix("attributes.") if found else None


def fail(message: str) -> NoReturn:
    """Ends the test with `message` and nothing else."""
    raise pytest.fail.Exception(message, pytrace=False) from None


def fresh(make: Callable[[], object]) -> Any:
    """Returns a callback that no run has used. Its failures end the run, whatever `critical` says:
    a test must not miss them.
    """
    made = make()
    if isinstance(made, ModuleType):
        made = _import_again(made)
    if not isinstance(made, type):
        made.critical = True  # type: ignore[attr-defined]
    return made


def build(callbacks: Sequence[object], place: Path | None, **settings: Any) -> Trainer:
    """Returns a tiny trainer; skips the test where the hooks are refused, which has a test of its
    own.
    """
    try:
        return _make_trainer(callbacks, place, **settings)
    except PluginError as error:
        pytest.skip(f"no run is possible, see test_its_hooks_and_their_arguments_exist: {error}")


def make_others(names: Sequence[str]) -> list[Any]:
    """Returns a new callback of each of these installed plugins, built from its defaults."""
    return [plugins.create(name) for name in names]


def _make_trainer(
    callbacks: Sequence[object],
    place: Path | None,
    *,
    beside: Sequence[str] = (),
    make_model: Callable[[], nn.Module | None] = lambda: None,
    **settings: Any,
) -> Trainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make_model()
    every = [*callbacks, *make_others(beside)]
    return make_tiny_trainer(every, output_dir=place, model=model, **settings)


def train_if_it_suits(make: Callable[[], object], place: Path | None, **settings: Any) -> None:
    """Trains with a fresh callback; to refuse the run, before its first step, is right."""
    callback = fresh(make)
    try:
        trainer = _make_trainer([callback], place, **settings)
    except UsageError:
        return
    train(trainer, may_refuse=True)


def _skip_unsaveable(error: str) -> NoReturn:
    pytest.skip(f"no snapshot is possible, see test_its_state_is_plain_data: {error}")


def train(
    trainer: Trainer,
    *,
    resume: bool = False,
    may_refuse: bool = False,
    unsaveable: Callable[[str], NoReturn] = _skip_unsaveable,
    changes: list[str] | None = None,
) -> TrainResult | None:
    """Trains; a callback that raises fails the test, unless it says that the exception passes: then
    there is nothing to compare, and the test is skipped.

    Args:
        may_refuse: to refuse the run before its first step is right, and gives None.
        unsaveable: called with the message where its state cannot be saved; there is a test for
            that, so that the others are skipped.
        changes: gets what the run has changed of the process, such as signal handlers, in words. It
            is put back in any case: the next run must not see it.
    """
    passes = tuple(kind for each in trainer.run.view.manager.plugins for kind in each.passes)
    changed: list[str] = []
    try:
        with undo_changes() as changed:
            return trainer.train(resume=resume)
    except passes as error:
        pytest.skip(f"it ends the run by an exception that it lets pass: {error!r}")
    except UsageError as error:
        if may_refuse:
            return None
        fail(f"it refuses the run: {error}")
    except CallbackError as error:
        if isinstance(error.__cause__, StateError):
            unsaveable(str(error))
        cause = "".join(traceback.format_exception(error.__cause__))
        fail(f"{error}\n\n{cause}")
    finally:
        if changes is not None:
            changes += changed


def play(
    make: Callable[[], object],
    place: Path,
    *,
    resume: bool = False,
    used: bool = False,
    **settings: Any,
) -> Outcome:
    """Trains with a fresh callback and returns what came of it.

    Args:
        used: the callback may have been in a run before, so take it as `make` returns it.
        settings: `also` (more callbacks), and what `make_tiny_trainer` takes.
    """
    callback: Any = make() if used else fresh(make)
    before = read_attributes(callback)
    trainer = build([callback, *settings.pop("also", ())], place, **settings)
    result = train(trainer, resume=resume)
    assert result is not None
    after = read_attributes(callback)
    decisions = {name: getattr(result, name) for name in DECISIONS}
    return Outcome(
        {**decisions, "history": [dict(entry) for entry in result.history]},
        read_state(trainer, callback),
        after,
        frozenset(n for n in after if find_difference(before.get(n), after[n], n) is not None),
        [json.loads(line) for line in read_logged(place / "metrics.jsonl")],
        {name: value.clone() for name, value in trainer.model.state_dict().items()},
    )


def read_state(trainer: Trainer, callback: object) -> Any:
    """Returns the callback's state in the newest snapshot, or None."""
    assert trainer.output_dir is not None
    newest = max((trainer.output_dir / "snapshots").glob("step-*"))
    state = torch.load(newest / "state.pt", weights_only=True)
    key = next(p.state_key for p in trainer.run.view.manager.plugins if p.callback is callback)
    return state["callback_state"].get(key)


def _import_again(module: ModuleType) -> ModuleType:
    """Returns a new module with the same code: the state of a module is in its globals."""
    spec = importlib.util.find_spec(module.__name__)
    if spec is None or spec.loader is None:
        return module
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
