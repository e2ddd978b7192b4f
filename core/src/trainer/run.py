"""`Run`: what any loop needs round it. Read it top to bottom: `start`, `epochs`, `batches`,
`backward`, `step`. What happens where the next batch is asked for is in `passes.py`, what happens
behind an update and an epoch in `boundary.py`.

It calls the hooks of a step; `engine/` calls the others. It knows no file format and no command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from trainer_callback import UsageError
from trainer_callback.checks import is_count

from .config import ConfigError, TrainerConfig, refuse_settings
from .counters import Position
from .data.loaders import EpochLoader
from .engine.accelerated_state import AcceleratedState
from .engine.answers import Answers
from .engine.assembly import Setup, assemble
from .engine.boundary import Boundary, Validate
from .engine.call_order import check_turns, refuse
from .engine.lifetime import Lifetime, RunContext
from .engine.passes import Passes
from .engine.run_loaders import Loader, RunLoaders
from .engine.session import Resume
from .result import Stop, TrainResult
from .step.advice import advise_backward
from .step.answers import Loss
from .step.losses import check_loss
from .step.precision import wrap_modules
from .view.view import View

__all__ = ["Run"]


class Run:
    """Drives one run of any loop: hooks, snapshots, signals, exact resume.

    Attributes:
        setup: what the run is made of.
        view: what callbacks see of it.
        position: where it stands: `epoch`, `step`, `batch` and others; read-only.
        module: what to call in place of the model: it averages gradients over the processes and
            computes in the run's precision. A mapping where there are several.
        answers: what loss functions have answered.
    """

    @refuse_settings
    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
        *,
        scheduler: Any = None,
        validate: Validate | None = None,
        config: TrainerConfig | None = None,
        callbacks: Sequence[object] = (),
        discover: bool = True,
        artifacts: Mapping[str, bytes] | None = None,
        accelerator: Any = None,
        progress: bool | None = None,
        trace_hooks: str | bool = False,
    ) -> None:
        """Checks everything that can be checked before the first step.

        Args:
            model: moved to the device here; several as a mapping of names.
            optimizer: over parameters of `model`; several as a mapping of names, each with
                parameters of its own. What it remembers follows them to the device.
            scheduler: a learning-rate scheduler, stepped as `scheduler_interval` says; of several
                optimizers a mapping with their names.
            validate: returns metrics; called where `eval_interval` or the end of an epoch asks for
                it, in evaluation mode, without gradients. The means over all processes count.
            config: the settings; default `TrainerConfig()`.
            callbacks: called in this order, before discovered ones.
            discover: use the installed plugins that are live in every run.
            artifacts: files (name -> content) for the output directory, each snapshot and `final/`.
            accelerator: the `accelerate.Accelerator` that has prepared model, optimizer, scheduler
                and loaders; its processes, device, precision and accumulation are the run's.
            progress: None: a bar in a terminal and in a notebook, lines elsewhere; see `Trainer`.
            trace_hooks: True, or a pattern of names of hooks: print their calls; see `Trainer`.

        Raises:
            ConfigError: an unknown device, a part of the wrong kind.
            PluginError: a callback that cannot be used.
        """
        self.setup: Setup = assemble(
            *(model, optimizer, scheduler, TrainerConfig() if config is None else config),
            callbacks=callbacks,
            discover=discover,
            artifacts=artifacts or {},
            accelerator=accelerator,
            progress=progress,
            trace_hooks=trace_hooks,
        )
        setup = self.setup
        self.view: View = setup.view
        self.position: Position = setup.view.position
        self.module: Any = wrap_modules(setup.trained, setup.precision)
        self._first, self._checks = setup.first, setup.checks_gradients
        self._is_only, self._is_alone = len(setup.updaters) == 1, setup.ranks.is_alone
        self._config, self._callbacks = setup.view.config, setup.view.manager
        self._boundary, self._loaders = Boundary(setup), RunLoaders(setup)
        self._passes = Passes(setup, self._boundary, self._loaders)
        self.answers: Answers = self._passes.answers
        self._lifetime = Lifetime(setup, self._boundary, self._passes)
        AcceleratedState(accelerator, setup, self._passes, self._lifetime)
        self.use_validation(validate)

    @property
    def model(self) -> nn.Module:
        """The module that is trained, as callbacks see it; a `ModuleDict` of several."""
        return self.view.model

    @property
    def result(self) -> TrainResult | None:
        """How the run ended, also where it failed; None before its end."""
        return self._lifetime.result

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Returns a context in the run's precision, for what the loop computes beside `module`."""
        return self.setup.precision.context()

    def keep(self, name: str, thing: Any) -> None:
        """Adds something with `state_dict` and `load_state_dict` to the snapshots, per process: a
        replay buffer, an environment, a counter. To be called before `start`.

        Raises:
            ConfigError: no such methods, or the name is taken; RunOrderError: after `start`.
        """
        refuse(self._lifetime.is_open, "keep()", "call it before start()")
        self.setup.checkpoint.keep(name, thing)

    def use_validation(self, validate: Validate | None) -> None:
        """Takes the function that validates, in place of the constructor's; None for none. Raises
        a UsageError where it is no function.
        """
        if validate is not None and not callable(validate):
            raise UsageError(f"validate must be a function without arguments, got {validate!r}.")
        self._boundary.validate = validate
        self.view.validates = validate is not None

    def use_loader(self, loader: Loader, *, validates: str = "") -> EpochLoader:
        """Returns `loader` as the run goes through it, seeded by epoch and shared by the processes.
        A run that knows its loader before it starts can check a snapshot against it.

        Args:
            validates: where a validation goes through it, how messages call it.

        Raises:
            ConfigError: it is no loader, or known to be empty.
        """
        used = self._loaders
        return used.for_validation(loader, validates) if validates else used.for_training(loader)

    def validation_batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches of a validation, on the device: of several processes each gets its
        share, and a signal cuts it.
        """
        return self._loaders.validation_batches(loader)

    def start(self, resume: Resume = False) -> contextlib.AbstractContextManager[Run]:
        """Returns the run as a context; inside it, the run holds the directory and the signals.

        Args:
            resume: False: start. True: go on from the newest sound snapshot of `output_dir`.
                `auto`: the same, or start where there is none. A path: go on from that snapshot.

        Raises:
            UsageError: refused before the first step.
            CallbackError: a callback failed; it names plugin, distribution, version and hook. What
                a callback has in `passes` is raised as it is.
            KeyboardInterrupt: after Ctrl-C, when the step is finished and the snapshot is durable.
        """
        return RunContext(self, self._lifetime, resume)

    def epochs(self) -> Iterator[int]:
        """Yields the number of each epoch; where the next is asked for, the one before ends. Raises
        a RunOrderError outside `start`, or inside an epoch.
        """
        self._check_outside("epochs()")
        return map(self._passes.next_epoch, repeat(self._passes.run))

    def batches(self, loader: Loader, limit: int | None = None) -> Iterator[Any]:
        """Yields the micro-batches of this epoch, on the device; where the next is asked for, the
        one before ends.

        Args:
            loader: an iterable that can be started again each epoch.
            limit: go through so many batches at most.

        Raises:
            RunOrderError: outside an epoch, or a second time in one.
            ConfigError: the loader is empty, or the limit is no number of batches.
        """
        if limit is not None and not is_count(limit, 1):
            raise ConfigError(f"batches: limit must be an integer of at least 1, got {limit!r}.")
        passes = self._passes
        refuse(not passes.in_epoch, "batches()", "call it inside `for epoch in run.epochs():`")
        way = "an epoch has one pass over one loader: chain loaders, or begin another epoch"
        refuse(passes.loader is not None, "batches()", way)
        return map(passes.next_batch, repeat(passes.begin(loader, limit)))

    def updates(self) -> Iterator[int]:
        """Yields the number of each micro-batch of a loop without a loader, until the steps or the
        time are used up; for callbacks it is one epoch without an end.

        Raises:
            RunOrderError: outside `start`, or inside an epoch; or a scheduler waits for its end.
        """
        self._check_outside("updates()")
        check_turns(self._config, by_epoch=self._boundary.scheduling.is_by_epoch)
        return map(self._passes.next_without_loader, repeat(self._passes.run))

    def read(self, answer: Any) -> Tensor | Loss:
        """Returns the loss in what a loss function has answered; outputs beside it are kept for
        the hooks that ask for them. Raises a LossError where it has none.
        """
        return self.answers.read(answer)

    def backward(self, loss: Tensor | Loss, name: str | None = None) -> None:
        """Takes the loss of a micro-batch, or a part of it, and runs its backward pass. Where that
        fails, the update under way is dropped, for its gradients may be there in part.

        Args:
            loss: 0-dim, unscaled, undivided; divided by `gradient_accumulation_steps` here. Or a
                `Loss`: sums are divided by the number of items of the whole update.
            name: of the optimizer whose parameters get gradients; None: all that are trained.

        Raises:
            LossError: it is no loss; RunOrderError: outside a batch, or with and without names.
        """
        passes, setup, answers = self._passes, self.setup, self.answers
        steps = divisor = self._config.gradient_accumulation_steps
        if not passes.in_batch or name is not None or passes.loss is not None:
            passes.check_backward_allowed(name)
        if isinstance(loss, Loss) is not answers.are_sums:
            answers.agree_on_form(loss)
        mean: Any = loss
        part: Any = loss
        if answers.are_sums:
            mean, part = answers.divide(loss, name, passes.backward_names)
            divisor = 1
        else:
            check_loss(loss)
            setup.losses.add(mean, name or "", to_last=name in passes.backward_names)
        if "on_forward_end" in self._callbacks.used:
            own = mean.detach().clone()
            passes.hook.on_forward_end(trainer=self.view, loss=own, outputs=answers.outputs)
            answers.drop_outputs()
        if steps > 1 and self.position.window and self._is_only:
            self._first.reach.check()  # whose gradients somebody may have dropped in the window
        inputs = None if name is None else setup.updaters[name].gradients.own
        try:
            setup.precision.backward(part, divisor, inputs)
        except BaseException as error:
            passes.drop_update()
            raise advise_backward(error)  # noqa: B904 - it is the same
        passes.take(mean, name)

    def step(self, name: str | None = None) -> bool:
        """Takes the step of an optimizer where its window of micro-batches ends; returns whether
        it was taken, and not skipped.

        Args:
            name: of the optimizer, where there are several.

        Raises:
            RunOrderError: without a backward pass before, or twice.
            NonFiniteError: a loss or gradient is not finite; read late, the next batch raises it.
        """
        passes, setup, config = self._passes, self.setup, self._config
        updater = passes.claim_updater(name)
        if not passes.ends_update:
            return False
        view, hook, position, gradients = self.view, passes.hook, self.position, updater.gradients
        view.updater = updater
        position.step = position.update - 1
        updater.reach.check()
        if setup.precision.scaler is not None:
            setup.precision.unscale(updater.optimizer, gradients.outside)
        if self.answers.are_sums:
            updater.weights.finish(gradients)
        elif position.window != config.gradient_accumulation_steps:  # the last one may be short
            gradients.multiply(config.gradient_accumulation_steps / position.window)
        if not self._is_alone:
            setup.ranks.average(gradients.own)
        hook.on_backward_end(trainer=view)
        gradients.follow()
        if config.max_grad_norm is not None:
            norm, clipped = gradients.clip(config.max_grad_norm)
            updater.total_norm, own = norm, norm.clone()
            hook.on_gradients_clipped(trainer=view, total_norm=own, clipped=clipped)
        verdict: Tensor | float | None = updater.total_norm
        trusted = verdict is not None and "on_gradients_clipped" not in self._callbacks.used
        if self._checks and not trusted:
            verdict = gradients.check(verdict, on_device=updater.leaves_verdict)
        skipped = updater.step(position, verdict)
        position.step, position.skips = position.update, position.skips + skipped
        hook.on_step_end(trainer=view, skipped=skipped)
        gradients.finish()
        view.updater = self._first
        return not skipped

    def discard(self) -> None:
        """Drops the gradients of the update under way; its batches do not come again."""
        self._passes.drop_update()

    def stop(self, reason: str, detail: str = "") -> None:
        """Asks for the end of the run at the next boundary, in all processes.

        Args:
            reason: one word for programs: `result.stop_reason`.
            detail: one sentence for people.

        Raises:
            UsageError: the reason is no text; RunOrderError: outside `start`.
        """
        refuse(not self._lifetime.is_open, "stop()", "call it inside `with run.start():`")
        if not isinstance(reason, str) or not reason:
            raise UsageError(f"stop: reason must be a str that is not empty, got {reason!r}.")
        self.setup.decider.asked = Stop("stopped", reason, str(detail))

    @property
    def stopping(self) -> bool:
        """Whether the run ends at this boundary, or the next."""
        return self._boundary.stop is not None or self.setup.decider.asked is not None

    def log(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to `on_log` of every callback; see `TrainerProtocol.log`."""
        self.view.log(metrics)

    def log_text(self, name: str, text: str) -> None:
        """Sends a text to `on_log_text`; see `TrainerProtocol.log_text`."""
        self.view.log_text(name, text)

    def request_snapshot(self) -> None:
        """Asks for a snapshot at the next boundary."""
        self.view.request_snapshot()

    def _check_outside(self, what: str) -> None:
        refuse(not self._lifetime.is_open, what, "call it inside `with run.start():`")
        refuse(self._passes.in_epoch, what, "an epoch is under way, and epochs cannot be nested")
