"""`Trainer`: the training loop, on one screen. Everything round it is in `run.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import ConfigError, TrainerConfig, refuse_settings
from .data.batch_size import BatchSizes
from .data.loaders import EpochLoader
from .engine.alike import check_alike_loader
from .engine.inference import Inference
from .engine.measure import Measure
from .engine.session import Resume
from .engine.sets import ONLY, Sets, name_in_words
from .result import TrainResult
from .run import Run
from .step.advice import advise
from .step.losses import call_model
from .step.metrics import Metrics, check_name
from .step.parts import check_loss_fn

__all__ = ["Trainer"]

logger: logging.Logger = logging.getLogger("trainer")


class Trainer:
    """Trains `model`.

    The timeline of a run, with the hooks that are called in it::

        on_snapshot_search                where it may go on from the newest one
        on_setup
        on_snapshot_load                  where it resumes
        on_train_start
            on_epoch_start
                on_batch_start
                    on_forward_end
                    on_backward_end       from here on where an update ends
                    on_gradients_clipped  where clipping is on
                    on_step_end
                on_batch_end
                on_log                    each `log_interval`
                on_validation_start       each `eval_interval`
                    on_validation_set_start
                        on_validation_batch_end
                    on_validation_set_end
                on_validation_end
                should_stop_training
                on_snapshot_save          where a snapshot is due
                on_snapshot_saved         at a boundary behind it
            on_validation_start
            on_validation_end
            on_log
            on_epoch_end
            should_stop_training
            on_snapshot_save              where a snapshot is due
        on_exception                      where one ends the run
        on_train_end
        on_final_saved                    where `final/` is written

    Attributes:
        run: what drives the loop.
    """

    @refuse_settings
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        *,
        loss_fn: Callable[[nn.Module, Any], Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        metric_inputs: Callable[[Any, Any], Any] | None = None,
        batch_size: Callable[[Any], int] | None = None,
        scheduler: Any = None,
        config: TrainerConfig | None = None,
        callbacks: Sequence[object] = (),
        discover: bool = True,
        artifacts: Mapping[str, bytes] | None = None,
        progress: bool | None = None,
        trace_hooks: str | bool = False,
        hyperparameters: Mapping[str, object] | None = None,
    ) -> None:
        """Checks everything that can be checked before the first step.

        Args:
            model: moved to the device here.
            optimizer: over parameters of `model`; what it remembers follows them to the device.
            train_loader: an iterable of batches (tensors, tuples or dicts) that can be started
                again each epoch.
            val_loader: the same for validation, or a mapping of names to them, or None for none.
            loss_fn: `(model, batch)` -> a 0-dim loss, `(loss, outputs)`, a mapping or an object
                with `loss`, or a `Loss`, which is a sum; default `trainer.default_loss`.
            metrics: name -> what is measured in each validation set: a function `(outputs, batch)`
                -> one value per item, or an object with `update`, `compute` and `reset`, as those
                of torchmetrics have.
            metric_inputs: `(outputs, batch)` -> the arguments of `update`; default `outputs` and
                the second part of a batch of two.
            batch_size: batch -> number of items, its weight in the reported losses; default: what
                a DataLoader promises; else guessed for `val_loss`, and 1 for `train_loss`.
            scheduler: a learning-rate scheduler, stepped as `scheduler_interval` says: once per
                update, or per epoch.
            config: the settings; default `TrainerConfig()`.
            callbacks: called in this order, before discovered ones.
            discover: use the installed plugins that are live in every run.
            artifacts: files (name -> content) to be written to the output directory, into each
                snapshot, and beside the finished model in `final/`.
            progress: None: a bar in a terminal and in a notebook, elsewhere lines on standard
                error. True: a bar also where no terminal is seen. False: nothing.
            trace_hooks: True, or a pattern of names of hooks such as `on_epoch_*`: a line on
                standard error for each call: arguments, whom it reached, times, answers.
            hyperparameters: name -> number, text, truth value, None, or a list of these, beside
                those of the run that trackers get.

        Raises:
            ConfigError: an unknown device, an empty loader, a part of the wrong kind.
            PluginError: a callback that cannot be used.
        """
        self.run: Run = Run(
            model,
            optimizer,
            scheduler=scheduler,
            config=config,
            callbacks=callbacks,
            discover=discover,
            artifacts=artifacts,
            progress=progress,
            trace_hooks=trace_hooks,
        )
        self.run.setup.know_hyperparameters(hyperparameters or {})
        check_loss_fn(loss_fn)
        self._loss_fn = loss_fn
        loss_of, setup = loss_fn or call_model, self.run.setup
        self._loader = self.run.use_loader(train_loader)
        self._loader.sizes = None if batch_size is None else BatchSizes(batch_size)
        self._loss_of = setup.precision.wrap(partial(loss_of, setup.trained))
        self.run.view.loss_of = self._loss_of
        measured = Metrics(metrics, metric_inputs, setup.ranks)
        if measured:
            self._loss_of = partial(self._answer_first, self._loss_of, measured)
        measure = Measure(
            setup,
            setup.precision.wrap(partial(loss_of, setup.evaluated)),
            metrics=measured,
            batch_size=batch_size,
            answers=self.run.answers,
        )
        self._inference = Inference(setup, measure, loss_fn=loss_fn, batch_size=batch_size)
        if val_loader is not None:
            sets = Sets(setup, self._use_sets(val_loader), measure)
            self.run.use_validation(sets)
            setup.know_metrics(sets.names)
            return
        check_alike_loader(None, "validation", setup.ranks)
        setup.know_metrics([])
        if metrics:
            logger.info(
                "there is no val_loader, so %s will be measured by trainer.evaluate() only.",
                ", ".join(metrics),
            )

    def _answer_first(self, loss_of: Callable[[Any], Any], metrics: Metrics, batch: Any) -> Any:
        """Returns the answer to the first batch, which has to have outputs for the metrics: else an
        epoch would pass before a validation finds that out.
        """
        answer = loss_of(batch)
        metrics.check_answer(answer)
        self._loss_of = loss_of
        return answer

    def _use_sets(self, given: Any) -> dict[str, EpochLoader]:
        """Returns the validation sets by name.

        Raises:
            ConfigError: there is none, or a name is none; or those of another process differ.
        """
        named = given if isinstance(given, Mapping) else {ONLY: given}
        if not named:
            raise ConfigError("val_loader is an empty mapping. Leave it out, or name a loader.")
        for name in named:
            check_name("validation set", name, "train")
        used = {}
        for name, loader in named.items():
            used[name] = self.run.use_loader(loader, validates=name_in_words(name))
            if len(used) == 1:  # a process without any has been told of by its first loader
                self._check_alike_sets([*named])
        return used

    def _check_alike_sets(self, names: list[str]) -> None:
        everywhere = self.run.setup.ranks.gather(names, "validation sets")
        if any(others != everywhere[0] for others in everywhere):
            raise ConfigError(
                f"the processes have other validation sets: {everywhere}. Give all the same."
            )

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses what nobody would read, such as `trainer.stop`."""
        if name != "run" and name[0] != "_" and not hasattr(type(self), name):
            raise AttributeError(
                f"Trainer has no attribute {name!r}, and nobody would read it. A run ends where a "
                "callback answers should_stop_training, and settings are those of TrainerConfig."
            )
        super().__setattr__(name, value)

    @property
    def model(self) -> nn.Module:
        """The module that is trained, never a compiled wrapper."""
        return self.run.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of `model`."""
        return self.run.view.optimizer

    @property
    def config(self) -> TrainerConfig:
        """The settings, with the precision and the directory that were chosen."""
        return self.run.view.config

    @property
    def output_dir(self) -> Path | None:
        """Where the run writes; None for one that writes nothing."""
        return self.run.view.config.output_dir

    @property
    def device(self) -> torch.device:
        """Where model and batches are."""
        return self.run.view.device

    @property
    def scheduler(self) -> Any:
        """The learning-rate scheduler, or None."""
        return self.run.view.scheduler

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.run.position.epoch

    @property
    def step(self) -> int:
        """Optimizer updates done so far, over all epochs and resumes."""
        return self.run.position.step

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last known value of every metric; read-only."""
        return self.run.view.metrics

    def log(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to `on_log` of every callback; see `TrainerProtocol.log`."""
        self.run.log(metrics)

    def log_text(self, name: str, text: str) -> None:
        """Sends a text to `on_log_text` of every callback; see `TrainerProtocol.log_text`."""
        self.run.log_text(name, text)

    def request_snapshot(self) -> None:
        """Asks for a snapshot at the next boundary, from any thread."""
        self.run.request_snapshot()

    def train(self, resume: Resume = False) -> TrainResult:
        """Trains until the epochs, the steps or the time are used up, or somebody asks for the end.

        Args:
            resume: False: start. True: go on from the newest sound snapshot of `output_dir`.
                `auto`: the same, or start where there is none. A path: go on from that snapshot.

        Raises:
            UsageError: refused before the first step.
            CallbackError: a callback failed; it names plugin, distribution, version and hook. What
                a callback has in `passes` is raised as it is.
            KeyboardInterrupt: after Ctrl-C, when the step is finished and the snapshot is durable.
        """
        run = self.run
        with run.start(resume):
            for _ in run.epochs():
                for batch in run.batches(self._loader):
                    try:
                        loss = self._loss_of(batch)
                    except Exception as error:
                        raise advise(error, self._loss_fn, batch)  # noqa: B904 - it is the same
                    if not isinstance(loss, Tensor):  # which takes outputs from beside it
                        loss = run.read(loss)
                    run.backward(loss)
                    run.step()
        assert run.result is not None
        return run.result

    def evaluate(self, loader: Iterable[Any], name: str = "test") -> dict[str, float]:
        """Returns the mean loss and the metrics over a set, with the weights as they are, as
        `NAME_loss`, `NAME_accuracy` and so on. Each item counts once; of several processes all have
        to call it.

        It is what a validation finds, outside a run: no hook is called, and nothing of it is left
        in random numbers, modes, gradients and `metrics`.

        Args:
            loader: an iterable of batches, such as those of `val_loader`.
            name: of the set.

        Raises:
            ConfigError: it is no loader, or the name is none.
            RunOrderError: inside a run, whose sets are those of `val_loader`.
        """
        return self._inference.evaluate(loader, name)

    def predict(
        self,
        loader: Iterable[Any],
        *,
        predict_fn: Callable[[nn.Module, Any], Any] | None = None,
        everywhere: bool = False,
    ) -> Any:
        """Returns the outputs of the model for a set, on the CPU, in the order of the data; of
        several processes all have to call it, and the others get None. As of `evaluate`, nothing of
        it is left.

        In containers of any kind, tensors (B, ...) of batches with B items become one (N, ...) for
        N items, and lists of B one of N. What has another shape in each batch, or no row for each
        item, is a list with a value per batch.

        Args:
            loader: an iterable of batches that does not shuffle.
            predict_fn: `(model, batch)` -> outputs, such as `lambda model, batch: model(batch)` for
                data without targets; default: what `loss_fn` answers beside the loss, and without
                `loss_fn` what the model makes of the batch, but for its `.loss`.
            everywhere: the outputs are returned in all processes.

        Raises:
            ConfigError: it is no loader, or one without an order; or there are no outputs.
            RunOrderError: inside a run.
        """
        return self._inference.predict(loader, predict_fn, everywhere=everywhere)
