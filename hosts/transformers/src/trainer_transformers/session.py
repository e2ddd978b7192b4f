"""One `train` of a Hugging Face trainer, told to a `HostedRun`: what happens there at which place.
Knows nothing of how the places are reached; `wrapping` does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers.trainer_utils import SaveStrategy

from trainer.hosting import HostedRun
from trainer.result import Stop

from .beside import lend_data
from .checkpoints import read_state, write_state
from .host import Host
from .metrics import name_validated, pick_other
from .private import reload_weights
from .refusals import refuse_two_restorers
from .settings import (
    count_batches,
    describe_settings,
    find_place,
    follow_place,
    make_config,
    note_host,
    unwrap,
)
from .window import Window

__all__ = ["Options", "Session"]

logger: logging.Logger = logging.getLogger("trainer")


@dataclass(frozen=True)
class Options:
    """What `attach` was given; see there."""

    callbacks: list[object]
    discover: bool
    output_dir: Path | None
    strict: bool


class Session:
    """One `train`, from its start to its end.

    Attributes:
        run: what callbacks see; None before the optimizer is there.
        window: the update under way.
        is_validating: the trainer evaluates.
        is_due: a validation follows, by the trainer's settings.
        is_ended_at_start: plugins have ended the run where it was resumed.
        asks_outputs: a callback wants what the model answers.
        wants_save: plugins want a checkpoint behind the validation that has ended last.
        train_loss: of the epoch, where nobody tells the losses of its batches.
    """

    def __init__(self, trainer: Host, options: Options, checkpoint: Path | None) -> None:
        """Keeps references.

        Args:
            checkpoint: where the trainer resumes, or None.
        """
        self._trainer, self._options, self._checkpoint = trainer, options, checkpoint
        self.run: HostedRun | None = None
        self._live: HostedRun  # the same, from then on
        self.window: Window = Window()
        self.is_validating: bool = False
        self.is_due: bool = False
        self._batches: int | None = None
        self._next_epoch = 0
        self.is_ended_at_start: bool = False
        self.asks_outputs: bool = False
        self.wants_save: bool = False
        self._is_waiting = self._is_guessed = self._is_told = False
        self._is_resumed = self._ends_epoch = self._is_unscaled = self._steps = False
        self._later = (False, False)
        self._saved: Path | None = None
        self._saved_step = -1
        self._logged: dict[str, Any] = {}
        self.train_loss: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether callbacks are told of what happens."""
        return self.run is not None and self.run.is_open

    # The start

    def note_loader(self, loader: object) -> None:
        """The trainer has made its loader."""
        self._batches = count_batches(loader)

    def open(self, refuse: Callable[[HostedRun], None] | None = None) -> None:
        """The optimizer is there, and not restored.

        Args:
            refuse: raises where a plugin cannot be in the run.
        """
        if self.run is not None:
            return
        trainer, options = self._trainer, self._options
        run = HostedRun(
            trainer.model,
            unwrap(trainer.optimizer),
            host="Hugging Face",
            config=make_config(trainer, options.output_dir),
            callbacks=options.callbacks,
            discover=options.discover,
            device=trainer.args.device,
            validates=str(getattr(trainer.args.eval_strategy, "value", "no")) != "no",
            hyperparameters=describe_settings(trainer),
        )
        run.check_processes(trainer.args.world_size, "On CPUs set use_cpu=True")
        refuse_two_restorers(trainer.args, run.manager.plugins)
        if refuse is not None:
            refuse(run)
        note_host(run, trainer)
        run.view.batches_per_epoch = self._batches
        if isinstance(trainer, transformers.Trainer):
            lend_data(run, trainer)
        self.run = self._live = run
        names = set(trainer.model.state_dict())
        place = find_place(trainer, self._batches)
        saved = read_state(run, self._checkpoint, trainer.state, strict=options.strict)
        self._is_resumed, self.asks_outputs = saved is not None, run.asks_outputs
        run.open(saved, resumes=self._checkpoint is not None, place=place)
        self._next_epoch = follow_place(run.position, place, known=self._batches is not None)
        if self._checkpoint is not None and set(trainer.model.state_dict()) != names:
            reload_weights(trainer, self._checkpoint)

    def begin(self, control: Any) -> None:
        """Everything is restored, and the first epoch has not begun."""
        self._live.begin(scheduler=self._trainer.lr_scheduler)
        if self._is_resumed and self._live.decide().stop is not None:
            self.is_ended_at_start = control.should_training_stop = True

    # Epochs and updates

    def start_epoch(self) -> None:
        """An epoch begins, or goes on. One of unknown length is told when its first batch is there:
        a resumed trainer may find that it has passed over all of them.
        """
        self._is_waiting = self._batches is None and not self.is_ended_at_start
        if not self._is_waiting:
            self._tell_epoch()

    def _tell_epoch(self) -> None:
        run, epoch = self._live, self._next_epoch
        self._next_epoch, self._is_waiting = epoch + 1, False
        if not self.is_ended_at_start or run.position.is_mid_epoch:
            run.start_epoch(epoch, batches=self._batches)

    def start_window(self, size: int, items: Any) -> None:
        """The micro-batches of an update were fetched."""
        if self._is_waiting and size:
            self._tell_epoch()
        if self._batches is not None:
            ends_epoch = self._live.position.batch + size >= self._batches
        else:
            ends_epoch = bool(self._trainer.accelerator.gradient_state.end_of_dataloader)
        self.window.start(size, items, ends_epoch=ends_epoch or not size)

    def start_window_by_events(self) -> None:
        """The first micro-batch of an update is about to be trained on; nobody tells how many
        follow.
        """
        if self._is_waiting:
            self._tell_epoch()
        batches, window = self._batches, self._trainer.args.gradient_accumulation_steps
        self._is_guessed = batches is None
        left = window if batches is None else min(window, batches - self._live.position.batch)
        self._trainer.accelerator.sync_gradients = True
        done = self._live.position.batch + left
        self.window.start(left, None, ends_epoch=batches is not None and done >= batches)
        self.start_batch(None)

    def start_batch(self, inputs: Any) -> None:
        """A micro-batch is about to be trained on."""
        self._live.start_batch(inputs, is_last=self.window.start_batch())

    def end_forward(self, loss: Tensor) -> None:
        """A loss is about to go through its backward pass."""
        window = self.window
        window.is_in_step = False
        mean, items = window.weigh(loss)
        self._live.end_forward(mean, window.outputs, items=items)
        window.outputs = None

    def end_batch(self) -> None:
        """A micro-batch is done that ends no update."""
        if not self._trainer.accelerator.sync_gradients:
            self._live.end_batch(ends_update=False)

    def end_backward(self) -> None:
        """The gradients of the update are complete, and unscaled."""
        if not self._is_unscaled and self.window.taken:
            self._is_unscaled = self._steps = True
            self._live.end_backward()

    def unscale(self) -> None:
        """The optimizer is about to step; where nothing was clipped, nobody has unscaled."""
        if not self._is_unscaled:
            self._trainer.accelerator.unscale_gradients()

    def end_clipping(self, norm: Any, limit: float) -> None:
        """The gradients were measured, and clipped where `limit` is finite."""
        if self._is_unscaled and norm is not None and math.isfinite(limit):
            self._live.end_clipping(norm, limit)

    def end_step(self) -> None:
        """Optimizer and scheduler have stepped, and the gradients are about to go."""
        if self._steps:
            self._steps = False
            skipped = bool(self._trainer.accelerator.optimizer_step_was_skipped)
            self._live.end_step(skipped=skipped)

    def end_update(self, control: Any) -> None:
        """An update is done."""
        self._is_unscaled = False
        self._live.end_batch(ends_update=True)
        if self.window.ends_epoch:
            # A checkpoint between the last update and the epoch's end would lose that at a resume.
            self._later = (control.should_evaluate, control.should_save)
            control.should_evaluate = control.should_save = False
        else:
            self.is_due = bool(control.should_evaluate)
            if not self.is_due:
                self._decide(control)

    def end_epoch(self, control: Any) -> None:
        """An epoch is over, or is left."""
        position = self._live.position
        if self._is_waiting:  # all batches were passed over: the data begins anew
            position.batch = 0
        if self._is_waiting or (self.is_ended_at_start and not position.is_mid_epoch):
            control.should_evaluate = control.should_save = control.should_log = False
            return
        if self._is_guessed:
            self.window.ends_epoch = not (control.should_training_stop or control.should_epoch_stop)
        evaluates, saves = self._later
        self._later = (False, False)
        control.should_evaluate = control.should_evaluate or evaluates
        control.should_save = control.should_save or saves
        self._ends_epoch, self.is_due = True, bool(control.should_evaluate)
        if not self.is_due:
            self.finish_epoch(control)

    def finish_epoch(self, control: Any) -> None:
        """Ends an epoch whose validation has ended, or was called off; nothing else."""
        if not self._ends_epoch:
            return
        run, self._ends_epoch = self._live, False
        is_cut = not self.window.ends_epoch
        run.end_epoch(cut=is_cut, train_loss=self.train_loss)
        if not is_cut:
            self._decide(control)
        elif self._saved_step == run.position.step:
            control.should_save = False

    def _decide(self, control: Any) -> None:
        decision = self._live.decide()
        if decision.stop is None and not decision.saves:
            return
        saves = self._trainer.args.save_strategy != SaveStrategy.NO
        if decision.stop is not None:
            control.should_training_stop = True
        if decision.saves and (saves or decision.stop is None):
            control.should_save = self.wants_save = True

    # Validation, logging, checkpoints

    def start_validation(self) -> None:
        """The trainer is about to evaluate."""
        self.is_validating, self.wants_save, self._logged = True, False, {}
        self._live.start_validation()

    def end_validation(self, metrics: Mapping[str, Any]) -> None:
        """The trainer has evaluated."""
        self.is_validating = self.is_due = False
        found = name_validated({**self._logged, **metrics})
        if not found and not self._is_told:
            self._is_told = True
            logger.warning(
                "the validation has found no metrics, not even a loss: plugins that wait for one "
                "do nothing. Where the labels are called otherwise, set label_names."
            )
        ends_epoch = self._ends_epoch
        self._live.end_validation(found, ends_epoch=ends_epoch)
        if ends_epoch:
            self.finish_epoch(self._trainer.control)
        else:
            self._decide(self._trainer.control)

    def log(self, logs: Mapping[str, Any]) -> None:
        """The trainer has logged something."""
        if self.is_validating:
            self._logged.update(logs)
        elif others := pick_other(logs):
            self._live.log(others)

    def log_own(self, logs: Mapping[str, Any]) -> None:
        """The trainer has logged what `log` leaves out, and nobody else tells."""
        self._live.log({name: float(value) for name, value in logs.items()})

    def save(self, folder: Path, mark: str | None) -> None:
        """A checkpoint is saved to `folder`, in a moment or a moment ago.

        Args:
            mark: of the run that it is of, as `checkpoints` makes it.
        """
        step = int(self._trainer.state.global_step)
        if folder.name != f"checkpoint-{step}":
            return
        write_state(self._live, folder, mark)
        self._saved, self._saved_step = folder, step

    def tell_saved(self) -> None:
        """The checkpoint is complete."""
        if self._saved is not None:
            self._live.tell_saved(self._saved)
            self._saved = None

    # The end

    def end(self, error: BaseException | None = None) -> None:
        """The training is over, by `error` where it is given; nothing happens where it is known."""
        run = self.run
        if run is None or not run.is_open:
            return
        stop, state = run.stop, self._trainer.state
        if error is None and stop is None and state.global_step < state.max_steps:
            stop = Stop("stopped", "host", "Hugging Face has ended the run before its last update.")
        run.end(stop, error)
