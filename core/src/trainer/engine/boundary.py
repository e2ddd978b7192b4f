"""What happens behind an update, and behind an epoch: its metrics are logged, the validation that
is due takes place, whether the run ends is decided, and a snapshot is taken.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from trainer_callback import TrainerCallback, option_text
from trainer_callback.calls.dispatch import Answer

from ..processes.sharding import find_tensors, reshard
from ..result import Stop
from ..snapshots.writer import copies_by_itself
from ..step.scheduling import Scheduling
from ..step.validation import CutError, agree_on_metrics, without_trace
from .assembly import Setup
from .own_metrics import describe_epoch, describe_interval, find_validated, record

__all__ = ["Boundary", "Validate"]

logger: logging.Logger = logging.getLogger("trainer")

Validate: TypeAlias = Callable[[], Mapping[str, Any]]


class Boundary:
    """The places at which a run may end and be saved.

    Attributes:
        validate: returns the metrics of a validation; None: there is none.
        stop: the end that all processes have agreed on, or None.
        scheduling: steps the schedulers that no update steps.
    """

    def __init__(self, setup: Setup) -> None:
        """Keeps references."""
        self._setup = setup
        self._view, self._session, self._decider = setup.view, setup.session, setup.decider
        self._callbacks, self._config = setup.view.manager, setup.view.config
        self._position = setup.view.position
        self._verdicts = setup.verdicts
        self._is_alone = setup.ranks.is_alone
        self._writes = self._config.output_dir is not None
        self._pins = copies_by_itself(self._view.device)
        schedulers = {name: each.scheduler for name, each in setup.updaters.items()}
        given = {name: each for name, each in schedulers.items() if each is not None}
        self.scheduling: Scheduling = Scheduling(given, self._config, self._position, setup.ranks)
        self.validate: Validate | None = None
        self.stop: Stop | None = None

    @property
    def _hook(self) -> TrainerCallback:
        return self._callbacks.hook

    @property
    def is_signalled(self) -> bool:
        """Whether a signal has asked for the end, in any process; all of them have to ask."""
        return self._decider.is_signalled()

    def decide_at_start(self, *, resumed: bool) -> None:
        """Decides, before the first epoch, whether the run ends where it begins."""
        stop = self._decide() if resumed else self._decider.read_signals()
        self.stop, _ = self._decider.agree(stop, snapshot_due=False)
        if resumed and self._view.is_main_process:
            self._warn_if_nothing_is_left()
        if self.stop is not None:
            self._session.save(due=True)

    def _warn_if_nothing_is_left(self) -> None:
        """Says of a run that resumes behind its end why it trains nothing."""
        position, config, stop = self._position, self._config, self.stop
        if stop is None and position.epochs_done >= config.epochs:
            limit, value = "epochs", config.epochs
        elif stop is not None and stop.reason == "max_steps" and config.max_steps is not None:
            limit, value = "max_steps", config.max_steps
        else:
            return
        logger.info(  # no warning: a job that is started again and again ends so
            "nothing is left to train: %s is %d, and %d epochs and %d updates are done. Raise it "
            "to go on.",
            *(option_text(limit), value, position.epochs_done, position.step),
        )

    def decide_after_break(self) -> None:
        """Ends the run here, where the loop was left before its end."""
        stop = self._decider.read_signals() or Stop("stopped", "break")
        self.stop, _ = self._decider.agree(stop, snapshot_due=True)
        self._verdicts.settle()

    def log_and_schedule(self) -> None:
        """Logs the update that has ended, where it is time, and sets what is due behind it."""
        position, config = self._position, self._config
        if position.step % config.log_interval == 0:
            self._log_interval()
        every = config.eval_interval
        if every is not None and self.validate is not None and not position.is_last:
            position.validation_pending = position.step % every == 0

    def _log_interval(self) -> None:
        self._verdicts.settle()
        setup = self._setup
        self._view.log(describe_interval(setup.updaters, self._position, setup.losses))

    def finish_update(self) -> None:
        """Validates, decides and saves behind an update inside an epoch."""
        if self._position.validation_pending:
            self._verdicts.settle()
            if (metrics := self._validate()) is not None:
                self._position.validation_pending = False
                record(self._view, metrics)
                self.scheduling.end_validation(metrics)
        self.decide_and_save()

    def end_epoch(self) -> None:
        """Validates, decides and saves at an epoch's end, also of one that was cut short, whose
        snapshot is taken already.
        """
        self._verdicts.settle()
        position, cut = self._position, self.stop is not None
        position.body_done = not cut
        if self.is_signalled:  # the end of the epoch comes after the resume
            if not cut:
                self.decide_and_save()
            return
        position.is_last = not cut  # after a resume behind the last update, too
        metrics: dict[str, float] | None = {}
        if self.validate is not None:
            metrics = (find_validated(position) if cut else None) or self._validate()
        if metrics is None:
            self.decide_and_save()
            return
        found = describe_epoch(position, self._setup.losses)
        record(self._view, {**found, **metrics})
        self._decider.agree_on_callbacks()
        self._hook.on_epoch_end(
            trainer=self._view,
            epoch=position.epoch,
            train_loss=found["train_loss"],
            val_loss=metrics.get("val_loss"),
            metrics=position.metrics,
        )
        if not cut:
            position.epoch_done = True
            self.scheduling.end_epoch()
            self.decide_and_save()

    def decide_and_save(self) -> None:
        """Decides whether the run ends here, then takes the snapshot that is due."""
        view, writes = self._view, self._writes
        if view.queue.waiting:
            view.queue.make_calls()
        due = writes and (view.snapshot_due or view.snapshot_requested)
        self.stop = self._decide()
        if not self._is_alone:
            self.stop, due = self._decider.agree(self.stop, snapshot_due=due)
        if due or self.stop is not None:
            self._verdicts.settle()
        if writes:
            if self._pins and not view.store.is_prepared and view.step and view.is_main_process:
                view.store.prepare(self._find_tensors())
            due = due or self.stop is not None
            view.snapshot_requested = view.snapshot_requested and not due
            self._session.save(due=due)

    def _find_tensors(self) -> Iterator[Tensor]:
        """Yields the large ones of a snapshot; an optimizer has its own since the first update."""
        states = [each.optimizer.state.values() for each in self._setup.updaters.values()]
        model, weights = self._view.model, self._view.model.state_dict()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not (self._config.snapshot_frozen or parameter.requires_grad):
                weights.pop(name, None)
        yield from (tensor for _, tensor in find_tensors([weights, *map(list, states)]))

    def _decide(self) -> Stop | None:
        answers: Sequence[Answer] = ()
        if "should_stop_training" in self._callbacks.used:
            answers = self._callbacks.ask_stop(trainer=self._view)
        return self._decider.decide(self._position, answers)

    def _validate(self) -> dict[str, float] | None:
        """Returns the metrics, or None if a signal cut the validation short."""
        view, setup, validate = self._view, self._setup, self.validate
        assert validate is not None
        started = time.monotonic()
        setup.prepare_evaluation()
        with without_trace(setup.modes, view.device):
            self._hook.on_validation_start(trainer=view)
            found: dict[str, float] | None = None
            with contextlib.suppress(CutError), torch.no_grad(), setup.precision.context():
                found = agree_on_metrics(validate(), setup.ranks)
            reshard(setup.fsdp_modules)
            metrics = {} if found is None else found
            for name, value in metrics.items():
                if not math.isfinite(value):
                    what = "validation loss" if name == "val_loss" else f"metric {name!r}"
                    logger.warning("the %s at update %d is %s.", what, view.step, value)
            self._position.metrics.update(metrics)
            self._hook.on_validation_end(trainer=view, metrics=metrics)
        if found is not None:
            self._decider.reserve(time.monotonic() - started)
        return found
