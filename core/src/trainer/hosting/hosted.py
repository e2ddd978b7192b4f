"""A run that another trainer drives. It steps nothing, stops nothing and saves nothing: its host
does, and calls the methods in this order.

    open                      on_setup: before the host restores its optimizer
    begin                     on_snapshot_load, on_train_start
    each epoch:
        start_epoch           on_epoch_start
        each batch:
            start_batch       on_batch_start
            end_forward       on_forward_end
            each update:
                end_backward  on_backward_end: gradients of the unscaled loss, not clipped
                end_clipping  on_gradients_clipped
                end_step      on_step_end: optimizer and scheduler have stepped
            end_batch         on_batch_end, on_log
        start_validation      on_validation_start
            sets.start        on_validation_set_start
            sets.end_batch    on_validation_batch_end
            sets.end          on_validation_set_end
        end_validation        on_validation_end
        end_epoch             on_epoch_end
    decide                    should_stop_training: behind an update, a validation, an epoch
    collect, tell_saved       on_snapshot_save, on_snapshot_saved
    end                       on_exception, on_train_end
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from trainer_callback.calls.dispatch import Answer
from trainer_callback.errors import text_of

from ..config import TrainerConfig
from ..engine.blame import blame_hook
from ..engine.decision import StopDecider
from ..engine.hyperparameters import check_hyperparameters, collect_hyperparameters
from ..engine.outcome import make_result
from ..processes.group import check_processes
from ..result import Stop, TrainResult
from .parts import make_view
from .place import hold_folder
from .state import SavedState
from .states import HostedStates
from .updates import HostedUpdates

__all__ = ["Decision", "HostedRun"]

logger: logging.Logger = logging.getLogger("trainer")


@dataclass(frozen=True)
class Decision:
    """What all processes have agreed on.

    Attributes:
        stop: why the run ends here; None: it goes on.
        saves: a checkpoint is to be saved here.
    """

    stop: Stop | None
    saves: bool


_UNCALLED: Final = {
    "on_snapshot_search": "finds its checkpoints itself",
    "on_final_saved": "writes no final/",
}
"""Hook -> what a host does instead."""

_NONE: list[Answer] = []
_GO_ON = Decision(None, saves=False)


class HostedRun(HostedUpdates):
    """One run of a host, as its callbacks see it.

    Attributes:
        view: the `trainer` of every hook.
        position: where the run stands; read-only.
        manager: its callbacks.
        stop: what callbacks have decided last; None: nothing ends the run.
        is_open: between `open` and `end`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        host: str,
        config: TrainerConfig,
        callbacks: Sequence[object],
        discover: bool = True,
        scheduler: Any = None,
        device: torch.device | None = None,
        validates: bool = False,
        hyperparameters: Mapping[str, object] | None = None,
    ) -> None:
        """Checks the callbacks.

        Args:
            model: the plain model, on its device.
            optimizer: the plain optimizer.
            host: how messages call the host.
            config: its settings by our names, as far as it has them: `output_dir` is where plugins
                write, None for nowhere; `log_interval` the updates between two log events;
                `precision` and `max_grad_norm` what is really used.
            callbacks: called in this order, before discovered ones.
            discover: use the installed plugins that are live in every run.
            scheduler: what steps the learning rate, or None.
            device: default that of the model.
            validates: the host will validate.
            hyperparameters: the host's own settings, for trackers.

        Raises:
            ConfigError: a callback needs an output directory, and there is none.
            PluginError: a callback cannot be used.
        """
        view, losses = make_view(
            *(model, optimizer, scheduler, config),
            host=host,
            callbacks=callbacks,
            discover=discover,
            device=device,
        )
        super().__init__(view, losses, StopDecider(config, view.manager, view.ranks))
        self._states = HostedStates(view, losses)
        self._held = contextlib.ExitStack()
        self.stop: Stop | None = None
        self.is_open: bool = False
        view.validates = validates
        given, updaters = check_hyperparameters(hyperparameters or {}), {"": self._updater}
        collect = partial(collect_hyperparameters, updaters, given)
        view.collect_hyperparameters = collect

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self._ranks.is_main)

    # The start

    def check_processes(self, used: int, advice: str) -> None:
        """Raises a `ConfigError` where the host knows of fewer processes than there are: `used`;
        `advice` is what makes it know of them.
        """
        check_processes(self._ranks, self.view.host, used, advice)

    def open(
        self,
        saved: SavedState | None = None,
        *,
        resumes: bool = False,
        place: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Starts the run, at the place of `saved`, and lets callbacks change the structure of what
        is trained. All processes have to call it, before the optimizer is restored.

        Args:
            resumes: the host goes on with a run, whether or not there is a state of its plugins.
            place: where it does without one: epoch, updates, and batches of that epoch, all done.

        Raises:
            UsageError: refused before the first step.
            CallbackError: a callback failed.
        """
        view = self.view
        with contextlib.ExitStack() as held:
            held.enter_context(self._ranks.run())
            resumes = resumes or saved is not None
            folder = hold_folder(self._config.output_dir, self._ranks, resumes=resumes)
            view.run_id = held.enter_context(folder)
            held.enter_context(contextlib.closing(self.manager))
            view.queue.start()
            view.senders.start(bool)
            held.callback(view.senders.close)
            self._losses.reset()
            self._states.load(saved, place)
            self._found = None if saved is None else saved.state.get("found")
            self._held = held.pop_all()
        self.is_open = True
        with self._ending():
            found, states = self._states.checkpoint, self._states.loaded
            self.hook.on_setup(trainer=view, checkpoint=found, state=states)
            self._updater.start()

    def begin(self, *, scheduler: Any = None) -> None:
        """Tells callbacks that the run begins, when the host has restored everything. Raises what
        `open` does.

        Args:
            scheduler: what steps the learning rate, where that was not known before.
        """
        if scheduler is not None:
            self._updater.scheduler = scheduler
        view, found = self.view, self._states.checkpoint
        with self._ending():
            if found is not None:
                state = self._states.loaded
                self.hook.on_snapshot_load(trainer=view, checkpoint=found, state=state)
            self._updater.start()
            self.hook.on_train_start(trainer=view, resumed=found is not None)
            self.manager.check_late()
            self._warn_uncalled()
            view.queue.open()
            self._states.checkpoint = None

    def _warn_uncalled(self) -> None:
        """Names who implements a hook that no host calls."""
        for hook, reason in _UNCALLED.items() if self.is_main else ():
            if names := sorted(self.manager.implementers(hook)):
                what = (" and ".join(names), hook, self.view.host, reason)
                logger.warning("%s will not be called in %s: %s %s.", *what)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.end(None, error)
            raise

    # Decisions, checkpoints, the end

    def decide(self) -> Decision:
        """Asks callbacks whether the run ends here, and whether they want a checkpoint; nothing is
        latched. All processes have to call it.
        """
        view, answers = self.view, _NONE
        if view.queue.waiting:
            view.queue.make_calls()
        if "should_stop_training" in self.manager.used:
            answers = self.manager.ask_stop(trainer=view)
        stop = self._decider.decide(self.position, answers)
        stop, saves = self._decider.agree(stop, snapshot_due=view.snapshot_requested)
        if saves:
            view.snapshot_requested = False
        self.stop = stop
        return _GO_ON if stop is None and not saves else Decision(stop, True)

    def collect(self) -> SavedState:
        """Returns the state of the callbacks, for a checkpoint of this place. All processes have to
        call it; that of the main one is whole.

        Raises:
            CallbackError: a callback failed, or its state cannot be saved.
            ReplicaError: the processes train different models.
        """
        self.view.check_replicas()
        return self._states.collect(self._found)

    def tell_saved(self, path: Path) -> None:
        """The checkpoint `path` of this place is on the disk."""
        if self.is_main:
            place = {"epoch": self.view.epoch, "step": self.view.step}
            self.hook.on_snapshot_saved(trainer=self.view, path=path, **place)

    def end(self, stop: Stop | None, error: BaseException | None = None) -> TrainResult | None:
        """Tells callbacks how the run has ended, and closes them; once. Returns that, or None where
        no run is open.

        Args:
            stop: why it has ended; None: what callbacks have decided, or else the epochs are over.
            error: the exception that ends it.

        Raises:
            CallbackError: a callback failed, and no `error` was given.
        """
        if not self.is_open:
            return None
        self.is_open, held = False, self._held
        view, failures = self.view, list[BaseException]()
        if error is not None:
            error = blame_hook(error, self.manager.plugins)
            raised = error
            _attempt(lambda: self.hook.on_exception(trainer=view, exception=raised), [])
        else:
            _attempt(view.queue.open, failures)
        ended, stop = error or next(iter(failures), None), stop or self.stop
        if ended is None and stop is None:
            self.position.start_epoch()  # as in a Trainer, whose epochs are over then
        result = make_result(view, self.manager, stop, ended)
        view.is_ending = True
        try:
            with held:
                _attempt(lambda: self.hook.on_train_end(trainer=view, result=result), failures)
                _attempt(view.senders.wait, failures)
                _attempt(view.queue.close, failures)
                ended = error or next(iter(failures), None)
                if ended is not None:
                    raise ended  # of which the other processes hear when `held` is left
        except BaseException as raised:
            if raised is not error:  # that the host raises itself
                raise
        finally:
            view.is_ending = False
            failures.clear()
            del error, ended  # whose tracebacks have this frame
        return result


def _attempt(call: Callable[[], object], failures: list[BaseException]) -> None:
    """Calls; what it raises is logged and kept: one failure must not hide another."""
    try:
        call()
    except BaseException as error:
        logger.error("%s", text_of(error))
        failures.append(error)
