"""`Plugins`, a callback of a Lightning trainer.

It tells a `HostedRun` what the trainer does, at these of the hooks:

    on_fit_start             open: the optimizer is there, its state is not restored yet
    on_train_start           begin
    on_train_batch_start     start_epoch (at the first one), start_batch
    training_step            end_forward: wrapped, for the loss as it was computed
    on_before_optimizer_step end_backward
    clip_grad_by_norm        end_clipping: wrapped, for the norm before
    on_train_batch_end       end_step, end_batch: the scheduler has stepped
    on_validation_start, on_validation_batch_start, on_validation_batch_end, on_validation_end,
    on_train_epoch_end
    state_dict               collect
    save_checkpoint          tell_saved: wrapped
    on_train_end, on_exception
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.hosting import HostedRun, SavedState, make_callbacks
from trainer.result import Stop, TrainResult

from .beside import Beside
from .framework import Callback, is_a
from .metrics import ValidationMetrics
from .progress import (
    Turn,
    count_items,
    find_stop,
    is_validated,
    name_checkpoint,
    name_set,
    validation_interval,
)
from .settings import (
    check_trainer,
    describe_hparams,
    list_approximations,
    make_config,
    refuse_two_restorers,
    saves_on_exception,
    tell_view,
)
from .state import pack_state, unpack_state
from .wraps import listen, read_answer

__all__ = ["Plugins"]

logger: logging.Logger = logging.getLogger("trainer")


class Plugins(Callback):  # type: ignore[misc]
    """The plugins of `trainer-core` in a Lightning trainer.

    Attributes:
        result: how the last run has ended; None before that.
    """

    def __init__(
        self,
        entries: Sequence[object] = (),
        *,
        discover: bool = True,
        output_dir: str | Path | None = None,
        strict: bool = False,
        val_loss: str | None = None,
    ) -> None:
        """Makes the plugins.

        Args:
            entries: callbacks, names of installed plugins, and mappings of such names to their
                options, as `{"early_stopping": {"patience": 3}}`.
            discover: use the installed plugins that are live in every run.
            output_dir: where plugins write; default `plugins` in the trainer's `default_root_dir`.
            strict: refuse a checkpoint without a state of the plugins; else they start fresh, with
                a warning.
            val_loss: the module's name of the validation loss, where that is not plain.

        Raises:
            PluginError: an entry cannot be used.
        """
        self.result: TrainResult | None = None
        self._callbacks, self._others = make_callbacks(entries), list[object]()
        self._discover, self._output_dir, self._strict = discover, output_dir, strict
        self._metrics = ValidationMetrics(val_loss)
        self._run: HostedRun | None = None
        self._held = contextlib.ExitStack()
        self._found: dict[str, Any] | None = None
        self._place = (0, 0, 0)
        self._at = Turn()
        self._beside: Beside | None = None
        self._scaler: Any = None
        self._last: dict[str, Any] = {}

    @property
    def _running(self) -> HostedRun:
        assert self._run is not None
        return self._run

    def add(self, callbacks: Sequence[object]) -> None:
        """Takes callbacks beside its own, instead of earlier such, before a run."""
        self._others = [*callbacks]

    @property
    def state_key(self) -> str:
        return "trainer_lightning.Plugins"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._found, self._place = None, (0, 0, 0)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self._found = None  # of another one: what looks for a learning rate goes back to its own
        self._place = (int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0)), 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        check_trainer(trainer)
        self._at, self._beside, self._last = Turn(), None, {}
        place = self._output_dir or Path(trainer.default_root_dir, "plugins")
        schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
        self._run = run = HostedRun(
            pl_module,
            trainer.optimizers[0],
            host="Lightning",
            config=make_config(trainer, Path(place).absolute()),
            callbacks=[*self._callbacks, *self._others],
            discover=self._discover,
            scheduler=schedulers[0] if schedulers else None,
            device=trainer.strategy.root_device,
            validates=trainer.enable_validation,
            hyperparameters=describe_hparams(pl_module),
        )
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        tell_view(trainer, run, lambda: self._at.scale if self._scaler is not None else None)
        run.check_processes(trainer.world_size, 'Write Trainer(devices=..., strategy="ddp")')
        refuse_two_restorers(run)
        resumes = trainer.ckpt_path is not None and bool(self._found or self._place[1])
        saved = self._read_state(trainer) if resumes else None
        here = (trainer.current_epoch, trainer.global_step, 0)  # not 0 in a second fit
        run.open(saved, resumes=resumes, place=self._place if resumes else here)
        self._held = listen(
            trainer, pl_module, run, loss=self._take_loss, log=self._log, saved=self._tell_saved
        )

    def _read_state(self, trainer: Any) -> SavedState | None:
        found, self._found = self._found, None
        step = self._place[1] or None
        return unpack_state(found, step, str(trainer.ckpt_path), strict=self._strict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run = self._running
        self._at.begun = True
        updates = trainer.estimated_stepping_batches
        run.view.total_steps = int(updates) if 0 <= updates < float("inf") else None
        self._at.scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if run.is_main:
            for sentence in list_approximations(trainer):
                logger.warning("Lightning: %s.", sentence)
        resumed = trainer.ckpt_path is not None and run.position.step > 0
        self._beside = Beside(trainer, run.view)
        run.begin()
        if resumed:
            self._decide(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        run = self._run
        if run is not None and run.is_open:
            self._last = pack_state(run.collect())
            self._finish(run, None if self._at.stopped else find_stop(trainer))

    def _finish(self, run: HostedRun, stop: Stop | None, error: Any = None) -> None:
        self._held.close()
        try:
            self.result = run.end(stop, error) or self.result
        finally:
            self._at, self._run, self._beside, self._scaler = Turn(), None, None, None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        run = self._run
        if run is None or not run.is_open:
            self._held.close()
            return
        if saves_on_exception(trainer) and run.view.world_size == 1:  # others may not come
            with contextlib.suppress(Exception):
                self._last = pack_state(run.collect())
        if is_a(exception, "SIGTERMException"):
            self._finish(run, Stop("terminated", "SIGTERM"))
        else:
            self._finish(run, None, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        run = self._run
        if run is not None and run.is_open:  # nothing was left to train
            if not self._at.begun:
                run.begin()
            self._last = pack_state(run.collect())
            self._finish(run, None if self._at.stopped else find_stop(trainer))
        self._held.close()

    # Batches and updates

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            self._start_epoch(trainer, self._run)

    def _start_epoch(self, trainer: Any, run: HostedRun) -> None:
        """Starts an epoch, or goes on with it: then Lightning calls no hook."""
        batches = trainer.num_training_batches
        self._at.in_epoch, self._at.is_last, self._at.due = True, False, False
        self._at.validates_every = validation_interval(trainer)
        run.start_epoch(
            trainer.current_epoch, batches=int(batches) if batches < float("inf") else None
        )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._running
        is_first = not self._at.in_epoch or batch_idx == 0
        if not self._at.in_epoch:
            self._start_epoch(trainer, run)
            run.position.batch = batch_idx
        is_last = trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
        self._at.is_last = is_last
        self._at.ends = is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_first or is_last:
            self._at.items = count_items(batch)
        run.start_batch(batch, is_last=is_last)

    def _take_loss(self, loss: Tensor, outputs: Any) -> None:
        run = self._run
        apart = self._beside is not None and self._beside.is_computing
        if run is not None and self._at.begun and not apart:
            run.end_forward(loss, outputs if run.asks_outputs else None, items=self._at.items)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self._run is not None:
            self._run.end_backward()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._running
        ends = self._at.ends
        if ends:
            run.end_step(skipped=self._scaler is not None and self._was_skipped())
        run.end_batch(ends_update=ends)
        if self._at.validates_every is not None:
            self._at.due = is_validated(trainer, batch_idx, self._at.validates_every)
        if ends and not self._at.due and not self._at.is_last:
            self._decide(trainer)

    def _was_skipped(self) -> bool:
        before, self._at.scale = self._at.scale, self._scaler.get_scale()
        return bool(self._at.scale < before)

    # Validations and the ends of epochs

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._at.begun and self._run is not None:
            if not self._at.in_epoch:
                self._start_epoch(trainer, self._run)
            self._at.is_validating = True
            self._metrics.start(trainer)
            self._run.start_validation()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._at.is_validating and batch_idx == 0:
            self._running.sets.start(name_set(trainer, dataloader_idx))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *values: Any) -> None:
        loss, outputs = read_answer(values[0])
        if self._at.is_validating and loss is not None:
            self._running.sets.end_batch(values[1], loss, outputs)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        run = self._run
        if not self._at.begun or run is None:
            return
        ends_epoch = self._at.is_last or (trainer.should_stop and not self._at.due)
        found = self._metrics.read(trainer, run.view)
        self._at.is_validating = False
        run.sets.end(found)
        run.end_validation(found, ends_epoch=ends_epoch)
        if self._at.ends and not ends_epoch:
            self._decide(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run = self._running
        if not self._at.in_epoch:  # it goes on behind the validation
            self._start_epoch(trainer, run)
        cut = not (self._at.is_last or trainer.is_last_batch)
        run.end_epoch(cut=cut)
        self._at.in_epoch = False
        if not cut:
            self._decide(trainer)

    def _decide(self, trainer: Any) -> None:
        """Lets plugins end the run, or save a checkpoint, here."""
        run = self._running
        decision = run.decide()
        if decision.stop is not None:
            self._at.stopped = self._at.stopped or not trainer.should_stop
            trainer.should_stop = True
            if (
                not self._at.is_last and self._at.in_epoch
            ):  # Lightning takes a cut epoch for a whole one
                trainer.save_checkpoint(name_checkpoint(trainer, "stopped"))
        elif self._at.stopped:  # the trainer has gone on, for min_steps: nothing is latched here
            self._at.stopped = trainer.should_stop = False
        if decision.saves and decision.stop is None:
            trainer.save_checkpoint(name_checkpoint(trainer, "requested"))

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        run = self._run
        if run is None or not run.is_open:
            return self._last
        self._at.collected = True
        return pack_state(run.collect())

    def _tell_saved(self, path: str) -> None:
        run = self._run
        if run is not None and run.is_open and self._at.collected:
            self._at.collected = False
            run.tell_saved(Path(path))

    def _log(self, metrics: Mapping[str, float]) -> None:
        run = self._run
        if run is not None and run.is_open and not self._at.is_validating:
            run.log(metrics)
