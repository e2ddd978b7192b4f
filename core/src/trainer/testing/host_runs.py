"""A callback in a `Trainer` and in other trainers, each in the same task: what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer.processes.rng import read_rng, restore_rng
from trainer.view.view import View
from trainer.writers.metrics_file import read_logged
from trainer_callback import CallbackError, StateError, TrainerCallback, UsageError, hookimpl
from trainer_callback.command_line.guard import undo_changes
from trainer_callback.state import to_plain

from .compare import find_difference, read_attributes
from .host_task import HostTask, Regression
from .runs import DECISIONS, Outcome, fresh, make_others

__all__ = [
    "CUT",
    "HostFailureError",
    "HostRefusalError",
    "note_config_reads",
    "play_in",
    "train_at_home",
]

CUT: Final = 4
"""The update that is resumed from: inside the second epoch, of three updates."""

_CPU: Final = torch.device("cpu")
_OURS: Final = ("trainer", "trainer_callback")


class HostRefusalError(Exception):
    """A callback, or the trainer that it is in, refuses the run, in words for people."""


class HostFailureError(Exception):
    """A run fails, or is not as it has to be, in words for people."""


class _Watch(TrainerCallback):
    """Keeps what a callback has come to, and copies `source` to `target` when the checkpoint of
    update `CUT` is complete.

    Attributes:
        result: of the run.
        state: of the callback, when the last checkpoint was complete; None: it has none.
    """

    def __init__(self, callback: object, source: Path, target: Path) -> None:
        self._callback, self._source, self._target = callback, source, target
        self.result: Any = None
        self.state: Any = None

    @hookimpl(trylast=True)
    def on_snapshot_saved(  # type: ignore[override]
        self, trainer: View, epoch: int, step: int
    ) -> None:
        states = trainer.manager.ask_state(trainer=trainer, epoch=epoch, step=step)
        own = [state for plugin, state in states if plugin.callback is self._callback]
        self.state = to_plain(own[0]) if own else None
        if step == CUT and not self._target.exists():
            shutil.copytree(self._source, self._target)

    def on_train_end(self, result: Any) -> None:  # type: ignore[override]
        self.result = result


def play_in(
    train: Callable[[HostTask], None],
    make: Callable[[], object],
    place: Path,
    *,
    beside: Sequence[str] = (),
    make_model: Callable[[], nn.Module | None] = lambda: None,
    cut: bool = False,
    **settings: Any,
) -> Outcome:
    """Trains with a fresh callback, and returns what came of it.

    Args:
        train: trains a task.
        place: a folder; the runs are in the same one below it, since paths are compared, too.
        cut: kill the run behind update `CUT`, and resume it with another fresh callback.
        settings: fields of `HostTask`.

    Raises:
        HostRefusalError: the run is refused; also where it is over at or before `CUT`.
        HostFailureError: it fails.
    """
    here, left = place / "run", place / "left"
    shutil.rmtree(here, ignore_errors=True)
    for resumes in (False, True) if cut else (False,):
        callback = fresh(make)
        before = read_attributes(callback)
        watch = _Watch(callback, here, left)
        callbacks = [callback, *make_others(beside), watch]
        model = _make_model(make_model)
        task = HostTask(model, callbacks, here, here / "plugins", resumes, **settings)
        _train_quietly(train, task)
        if cut and not resumes:
            if watch.result.steps <= CUT:
                raise HostRefusalError(f"it ends the run at or before update {CUT}")
            shutil.rmtree(here)
            left.rename(here)
    return _collect(task, callback, before, watch)


def train_at_home(task: HostTask) -> None:
    """Trains it in a `Trainer`. Raises what its `train` does."""
    first, second = task.data
    Trainer(
        task.model,
        task.make_optimizer(),
        DataLoader(first, batch_size=task.batch_size),
        DataLoader(second, batch_size=task.batch_size),
        loss_fn=task.compute_loss,
        config=TrainerConfig(
            output_dir=task.output_dir,
            epochs=task.epochs,
            gradient_accumulation_steps=task.window,
            max_grad_norm=task.max_grad_norm,
            log_interval=task.log_interval,
            snapshot_interval=task.save_interval,
            snapshot_epochs=False,
            snapshot_sync=True,
            device="cpu",
        ),
        callbacks=task.callbacks,
        discover=False,
        progress=False,
    ).train(resume=task.resumes)


def _make_model(make_model: Callable[[], nn.Module | None]) -> Regression:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = make_model() or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    for part in net.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0  # what is drawn is each trainer's own affair
    return Regression(net)


def _train_quietly(train: Callable[[HostTask], None], task: HostTask) -> None:
    """Trains, and puts the process back; what a framework says is not asked for."""
    passes = tuple(kind for each in task.callbacks for kind in getattr(each, "passes", ()))
    numbers, disabled = read_rng(_CPU), logging.root.manager.disable
    try:
        with undo_changes(), warnings.catch_warnings(), contextlib.ExitStack() as quiet:
            warnings.simplefilter("ignore")
            logging.disable()
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            train(task)
    except passes as error:
        raise HostRefusalError(
            f"the run ends by an exception that it lets pass: {error!r}"
        ) from error
    except UsageError as error:
        raise HostRefusalError(str(error)) from error
    except CallbackError as error:
        cause = error.__cause__
        if isinstance(cause, (UsageError, StateError)):
            raise HostRefusalError(str(error)) from error
        text = "".join(traceback.format_exception(cause))
        raise HostFailureError(f"it fails: {error}\n\n{text}") from error
    finally:
        logging.disable(disabled)
        restore_rng(numbers, _CPU)


def _collect(task: HostTask, callback: Any, before: Mapping[str, Any], watch: _Watch) -> Outcome:
    after, result = read_attributes(callback), watch.result
    decisions = {name: getattr(result, name) for name in DECISIONS}
    logged = read_logged(task.output_dir / "metrics.jsonl")
    return Outcome(
        {**decisions, "history": [dict(entry) for entry in result.history]},
        watch.state,
        after,
        frozenset(n for n in after if find_difference(before.get(n), after[n], n) is not None),
        [json.loads(line) for line in logged],
        {name: value.clone() for name, value in task.model.state_dict().items()},
    )


@contextlib.contextmanager
def note_config_reads() -> Iterator[list[str]]:
    """Yields the list of the modules, outside of the core, that read `trainer.config` meanwhile: of
    another trainer that is a part only.
    """
    own: Any = View.config
    reads: list[str] = []

    def config(view: View) -> TrainerConfig:
        room = str(sys._getframe(1).f_globals.get("__name__", ""))
        if room.partition(".")[0] not in _OURS and room not in reads:
            reads.append(room)
        found: TrainerConfig = own.fget(view)
        return found

    View.config = property(config)  # type: ignore[assignment, method-assign]
    try:
        yield reads
    finally:
        View.config = own  # type: ignore[method-assign]
