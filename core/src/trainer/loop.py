"""The training loop. Read it top to bottom: `train` -> `_train_epoch` -> `_train_batch` ->
`_update`.

Every hook stands where it is called. Whatever ends a run is decided in `_decide`, whether a
snapshot follows in `snapshot_due`, and nowhere else. The loop knows no file format, no plugin, and
no command.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer_callback import TrainerCallback, UsageError
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.plugins import find_live

from .batch_size import BatchSizes
from .batches import move_to_device
from .checkpoint import Checkpoint
from .compiled import plain_model
from .config import TrainerConfig
from .decision import Decider
from .host import Host
from .loaders import EpochLoader
from .losses import LossMeter, check_loss, default_loss
from .memory import explain_memory
from .metrics_file import core_callbacks
from .modes import Modes
from .parts import check_parts
from .progress import Progress
from .result import Stop, TrainResult
from .run import Resume, Run
from .sharding import fsdp_modules, reshard
from .signals import SignalFlags
from .step import Stepper
from .validation import mean_loss, without_trace

__all__ = ["Trainer"]

logger: logging.Logger = logging.getLogger("trainer")


class Trainer(Host):
    """Trains `model`. What callbacks may use of it is in `Host`; the rest is the loop."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        *,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        batch_size: Callable[[Any], int] | None = None,
        scheduler: Any = None,
        config: TrainerConfig | None = None,
        callbacks: Sequence[object] = (),
        discover: bool = True,
        artifacts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Checks everything that can be checked before the first step.

        Args:
            model: moved to the device here.
            optimizer: over parameters of `model`; what it remembers follows them to the device.
            train_loader: an iterable of batches (tensors, tuples or dicts) that can be started
                again each epoch.
            val_loader: the same for validation, or None for none.
            loss_fn: `(model, batch) -> 0-dim tensor`; default `trainer.losses.default_loss`.
            batch_size: batch -> number of items, its weight in `val_loss`; default: guessed.
            scheduler: a learning-rate scheduler; stepped once per update.
            config: the settings; default `TrainerConfig()`.
            callbacks: called in this order, before discovered ones.
            discover: use the installed plugins that are live in every run.
            artifacts: files (name -> content) to be written to the output directory, into each
                snapshot, and beside the finished model in `final/`.

        Raises:
            ConfigError: an unknown device, an empty loader, a part of the wrong kind.
            PluginError: a callback that cannot be used.
        """
        config = config if config is not None else TrainerConfig()
        check_parts(model, optimizer, scheduler, config, loss_fn)
        given, model, data = model, plain_model(model), (train_loader, val_loader)
        live = find_live() if discover else []
        manager = CallbackManager(callbacks, [*live, *core_callbacks(config)])
        super().__init__(model, optimizer, scheduler, config, manager, data=data)
        ranks, seed = self.ranks, config.seed
        trained, evaluated = ranks.prepare(model, given, compiled=config.compile)
        self._train = EpochLoader(train_loader, seed, "train", ranks)
        self._val = None
        if val_loader is not None:
            self._val = EpochLoader(val_loader, seed, "validation", ranks, in_step=False)
        self._batch_sizes = BatchSizes(batch_size)
        self._has_validation = val_loader is not None
        loss_fn = loss_fn or default_loss
        self._loss_of = self._precision.wrap(partial(loss_fn, trained))
        self._val_loss_of = self._precision.wrap(partial(loss_fn, evaluated))
        self._losses = LossMeter(ranks)
        self._stepper = Stepper(
            model,
            optimizer,
            scheduler,
            config,
            precision=self._precision,
            losses=self._losses,
            gradients=self._gradients,
        )
        self._checkpoint = Checkpoint(
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            precision=self._precision,
            losses=self._losses,
            loader=self._train,
            device=self.device,
            ranks=ranks,
        )
        self._run = Run(self, self._checkpoint, artifacts or {})
        self._moves_batches = self.device.type != "cpu"
        self._shards = [*fsdp_modules(model)]
        self._modes = Modes(model)
        self._is_training = False

    def train(self, resume: Resume = False) -> TrainResult:
        """Trains until the epochs, the steps or the time are used up, or somebody asks for the end.

        Args:
            resume: False: start. True: go on from the newest sound snapshot of `output_dir`.
                `auto`: the same, or start where there is none. A path: go on from that snapshot.

        Raises:
            UsageError: refused before the first step.
            CallbackError: a callback failed; it names plugin, distribution, version and hook.
            KeyboardInterrupt: after Ctrl-C, when the step is finished and the snapshot is durable.
        """
        if self._is_training:
            raise UsageError("this Trainer is training already: train() was called inside train().")
        self._is_training = True
        try:
            with self._run.open(resume), SignalFlags() as signals:
                resumed = self._begin(resume, signals)
                error: BaseException | None = None
                try:
                    self._train_epochs(resumed)
                except BaseException as caught:  # Ctrl-C and SystemExit end a run like any other
                    error = explain_memory(caught, self.epoch, self.step)
                try:
                    return self._run.end(self._stop, error)
                finally:
                    del error  # it holds this frame, and so the loader's workers
        finally:
            self._is_training = self._snapshot_requested = False

    def _begin(self, resume: Resume, signals: SignalFlags) -> bool:
        """Puts whatever changes in a run where a new trainer has it, and then, at a resume, where
        the snapshot has it. Returns whether there was one.
        """
        self._modes.leave_evaluation()
        self._decider = Decider(self.config, self.callbacks, signals, self.ranks)
        self._hook: TrainerCallback = self.callbacks.hook
        self._window = 0
        self._total_norm: Tensor | None = None
        self._stop: Stop | None = None
        self.last_update_of_epoch = False
        self.progress: Progress = Progress()
        for part in (self._losses, self._precision, self._checkpoint):
            part.reset()
        resumed = self._run.restore(resume)
        self._update_step = self.step
        self._gradients.start(of_run=True)
        return resumed

    def _train_epochs(self, resumed: bool) -> None:
        self._hook.on_train_start(trainer=self, resumed=resumed)
        self.callbacks.check_late()
        self.queue.open()
        if resumed:
            self._checkpoint.restore_rng()
        stop = self._decide() if resumed else self._decider.read_signals()
        self._stop, _ = self._decider.agree(stop, snapshot_due=False)
        if self._stop is not None:
            self._run.keep(self.progress)
            if self.progress.is_mid_epoch and not self._decider.is_signalled():
                self._train_epoch(resumed)  # which was cut here: its end comes again
        while self._stop is None and self.progress.start_epoch() < self.config.epochs:
            self._train_epoch(resumed)
            resumed = False

    def _train_epoch(self, resumed: bool) -> None:
        progress = self.progress
        self._modes.leave_evaluation()
        if progress.batch_in_epoch == 0:
            self._losses.start_epoch()
        self._hook.on_epoch_start(trainer=self, epoch=progress.epoch)
        self._gradients.start()
        if resumed and progress.batch_in_epoch:
            self._checkpoint.restore_rng()
        if progress.validation_pending:
            self._after_update()
        batches = self._checkpoint.continue_epoch(progress.epoch, progress.batch_in_epoch)
        while self._stop is None and (item := next(batches, None)) is not None:
            batch, self.last_update_of_epoch = item
            self._train_batch(batch)
            if self._window == 0:
                self._log_update()
                if not self.last_update_of_epoch:
                    self._after_update()
        if not self._decider.is_signalled():
            self._end_epoch()
        elif self._stop is None:
            self._close_boundary()  # the epoch's end comes after the resume

    def _train_batch(self, batch: Any) -> None:
        """One micro-batch, forward and backward; the last one of its window ends in an update."""
        if self._moves_batches:
            batch = move_to_device(batch, self.device)
        steps = self.config.gradient_accumulation_steps
        if self._window == 0:
            self.callbacks.start_update()
            self._update_step = self.progress.step + 1
            if self.callbacks.plugins:  # which may have left gradients since the last update
                self._gradients.drop()
            self._stepper.start()
        hook, used, batch_idx = self._hook, self.callbacks.used, self.progress.batch_in_epoch
        hook.on_batch_start(trainer=self, batch_idx=batch_idx, batch=batch)
        is_last = self._window + 1 == steps or self.last_update_of_epoch
        self.ranks.start_forward(last=is_last)
        if self._shards:
            reshard(self._shards)
        loss = self._loss_of(batch)
        check_loss(loss)
        if "on_forward_end" in used:
            hook.on_forward_end(trainer=self, loss=loss.detach().clone())
        self._losses.add(loss)
        self._precision.backward(loss if steps == 1 else loss / steps)
        self._window += 1
        self.progress.batch_in_epoch += 1
        if is_last:
            self._update()
        if "on_batch_end" in used:
            own = loss.detach() if self._window == 0 else loss.detach().clone()  # if yet to be read
            hook.on_batch_end(trainer=self, batch_idx=batch_idx, loss=own)

    def _update(self) -> None:
        hook, config, progress, gradients = self._hook, self.config, self.progress, self._gradients
        gradients.check_reached()
        self._precision.unscale(self.optimizer, gradients.outside)
        if self._window != config.gradient_accumulation_steps:  # the last window may be short
            gradients.multiply(config.gradient_accumulation_steps / self._window)
        hook.on_backward_end(trainer=self)
        gradients.follow()
        if config.max_grad_norm is not None:
            self._total_norm, clipped = gradients.clip(config.max_grad_norm)
            own = self._total_norm.clone()
            hook.on_gradients_clipped(trainer=self, total_norm=own, clipped=clipped)
        verdict: Tensor | float | None = self._total_norm
        trusted = verdict is not None and "on_gradients_clipped" not in self.callbacks.used
        if config.check_gradients and not trusted:
            verdict = gradients.check(verdict)
        skipped = self._stepper.step(progress, verdict)
        progress.step += 1
        hook.on_step_end(trainer=self, skipped=skipped)
        gradients.finish()
        self._window = 0

    def _log_update(self) -> None:
        if self.progress.step % self.config.log_interval == 0:
            norm = None if self._total_norm is None else float(self._total_norm)
            metrics = {"learning_rate": self._stepper.rate, "loss": self._losses.take_interval()}
            metrics["grad_norm"] = norm
            self.log({name: value for name, value in metrics.items() if value is not None})
        every = self.config.eval_interval
        if every is not None and self._val is not None and not self.last_update_of_epoch:
            self.progress.validation_pending = self.step % every == 0

    def _after_update(self) -> None:
        """The boundary behind an update inside an epoch: validation, the decision, the snapshot."""
        if self.progress.validation_pending and (metrics := self._validate()) is not None:
            self.progress.validation_pending = False
            self._record(metrics)
        self._close_boundary()

    def _end_epoch(self) -> None:
        """An epoch's end, also of one that was cut short, whose snapshot is taken already."""
        progress, cut = self.progress, self._stop is not None
        self.last_update_of_epoch: bool = not cut  # after a resume behind the last update, too
        metrics = {} if self._val is None else self._validate()
        if metrics is None:  # a signal came: the epoch's end comes after the resume
            self._close_boundary()
            return
        train_loss = self._losses.epoch_mean()
        self._record({"train_loss": train_loss, **metrics})
        self._decider.agree_on_callbacks()
        self._hook.on_epoch_end(
            trainer=self,
            epoch=progress.epoch,
            train_loss=train_loss,
            val_loss=metrics.get("val_loss"),
            metrics=progress.metrics,
        )
        if not cut:
            progress.epoch_done = True
            self._close_boundary()

    def _record(self, metrics: Mapping[str, float]) -> None:
        self.log(metrics)
        self.progress.history.append({"epoch": self.epoch, "step": self.step, **metrics})

    def _validate(self) -> dict[str, float] | None:
        """Returns `val_loss`, or None if a signal cut the validation short."""
        assert self._val is not None
        self.check_replicas()
        self.ranks.share([*self.model.buffers()])
        reshard(self._shards)
        with without_trace(self._modes, self.device):
            self._hook.on_validation_start(trainer=self)
            sizes, is_cut = self._batch_sizes, self._decider.is_signalled
            loss = mean_loss(
                self._val, self._val_loss_of, self.device, self.ranks, sizes=sizes, is_cut=is_cut
            )
            reshard(self._shards)
            metrics = {} if loss is None else {"val_loss": loss}
            if loss is not None and not math.isfinite(loss):
                logger.warning("the validation loss at update %d is %s.", self.step, loss)
            self.progress.metrics.update(metrics)
            self._hook.on_validation_end(trainer=self, metrics=metrics)
        return metrics or None

    def _close_boundary(self) -> None:
        """Decides whether the run ends here, then takes the snapshot that is due."""
        self.queue.make_calls()
        wanted = self.snapshot_due or self._snapshot_requested
        self._stop, due = self._decider.agree(self._decide(), snapshot_due=wanted)
        if self.output_dir is None:
            return
        self._snapshot_requested = self._snapshot_requested and not due
        self._run.keep(self.progress if due else None)

    def _decide(self) -> Stop | None:
        return self._decider.decide(self.progress, self.callbacks.ask_stop(trainer=self))
