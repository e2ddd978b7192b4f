"""The list of hooks. There is one: the methods of `TrainerCallback` are the pluggy hookspecs.

A hook's docstring is its documentation: *when* it is called, what is already true, what is not yet.
Every tensor that a hook is handed is detached and on its device; losses and norms are 0-dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from .arguments import CheckpointView, copy_mapping, copy_result, pick_state, view_checkpoint
from .protocol import TrainerProtocol
from .records import StopRequest
from .specs import PROJECT, HookSpec, OptionParser, hookspec, read_spec

if TYPE_CHECKING:
    import torch

__all__ = ["HOOKS", "SPECS", "TrainerCallback"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

SPECS: Final[dict[str, HookSpec]] = {}
"""Every hook by its name, in the order of the class."""


def _hook(**properties: Any) -> Callable[[_Function], _Function]:
    """Marks a method of `TrainerCallback` as a hook, with the properties of its `HookSpec`.
    `hookspec(warn_on_impl=...)` under it marks it as deprecated.
    """

    def mark(function: _Function) -> _Function:
        SPECS[function.__name__] = read_spec(function, **properties)
        return function if hasattr(function, f"{PROJECT}_spec") else hookspec(function)

    return mark


class TrainerCallback:
    """Base class of callbacks: override the hooks you need, with just the arguments you need. What
    is an attribute of the class may be set on an instance too.

    Attributes:
        option_prefix: prefix of the derived flags; default the entry point's name and an
            underscore.
        renamed_options: old name of an option -> today's; the old flag works on, with a warning.
        removed_options: name of an option that is gone -> why, and what to do; in a file it is a
            warning.
        state_key: key of this callback's state in `checkpoint["callback_state"]`; default the class
            name.
        state_key_aliases: earlier keys of the state, or names of the class, of older snapshots.
        state_version: raise it by 1 when the form of the state changes; `migrate_state` reads the
            older forms.
        needs_every_update: True means that its state is worth nothing once it has missed an update:
            where it was not in the run for a while, it is handed none, and starts fresh.
        critical: False means that a failure is reported once and the callback is switched off,
            while the run goes on.
        state_per_process: True means that of several processes each gets its own state back; else
            all get that of the main one.
        needs_output_dir: True means that a run without `output_dir` is refused before its first
            step.
        restores_weights: True means that it puts other weights into the model at the end of the
            run, as its options are; a host that would do so too is refused then.
        passes: exception classes that reach the caller of `train()` as they are, such as
            `(optuna.TrialPruned,)`: they end the run, and are no failure.
        logs_metrics: names of the metrics that it logs, `NAME*` for all that begin so; empty for
            none. None: it does not say, so that no run with it knows the names of its metrics.
        hookspecs: a class whose methods are hooks that this plugin brings: others implement them,
            and it calls them as `trainer.hook.on_x(...)`.
        before: names of plugins that must be called later than this one; absent ones are ignored.
        after: those that must be called earlier.
    """

    option_prefix: ClassVar[str | None] = None
    renamed_options: ClassVar[Mapping[str, str]] = {}
    removed_options: ClassVar[Mapping[str, str]] = {}
    state_key: str | None = None
    state_key_aliases: tuple[str, ...] = ()
    state_version: int = 1
    needs_every_update: bool = False
    critical: bool = True
    state_per_process: bool = False
    needs_output_dir: bool = False
    restores_weights: bool = False
    passes: tuple[type[BaseException], ...] = ()
    logs_metrics: tuple[str, ...] | None = None
    hookspecs: ClassVar[type | None] = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def migrate_state(self, state: Mapping[str, Any], old_version: int) -> Mapping[str, Any]:
        """Returns the state of an older `state_version` in today's form.

        Called before `on_snapshot_load`, only where the snapshot's version is lower than today's.

        Args:
            state: what `on_snapshot_save` returned then; a copy.
            old_version: the `state_version` of then.
        """
        raise NotImplementedError("there is no `migrate_state`")

    def close(self) -> None:
        """Gives back what this callback holds: threads, files, forward hooks. Does nothing unless
        it is overridden.

        Called once, whichever way a run ends: behind `on_train_end`, where somebody refuses the
        run, also before `on_train_start`, and at once where this callback fails and is switched
        off. The same object may be used for another run then.
        """

    @_hook(set_up=True, read_only=True)
    def add_options(self, parser: OptionParser) -> None:
        """Before the command line is parsed, for every installed plugin that is not blocked. A
        class implements it as a classmethod.
        """

    @_hook(set_up=True, read_only=True)
    def make_callbacks(self, options: Any) -> Sequence[object] | None:
        """After parsing, once per run: `options` is the parsed namespace. Returns the callbacks to
        use. A class implements it as a classmethod.
        """

    @_hook(set_up=True, read_only=True)
    def offer_defaults(self) -> Mapping[str, object] | None:
        """After the command line is parsed, for every installed plugin that is not blocked. Returns
        option, without dashes -> the value that it is to have where neither the command line nor a
        file says otherwise. A class implements it as a classmethod.
        """

    @_hook(may_refuse=True, copies={"checkpoint": view_checkpoint, "state": pick_state})
    def on_setup(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any] | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        """In every run, before model, optimizer and scheduler are restored: the place to change the
        structure of what is trained, such as groups of parameters, modules and what is frozen. It
        has to come out as it was where the snapshot was taken.

        `checkpoint` is that of `on_snapshot_load`, None at a fresh start; `state` what this
        callback returned from `on_snapshot_save`, None where there is none. Epoch and step are
        those of the snapshot. Nobody hears of a run that is refused here but by `close`.
        """

    @_hook(may_refuse=True)
    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        """Once. Model, optimizer and loaders are ready, a snapshot's state is loaded. Do not reset
        restored state when `resumed`.
        """

    @_hook()
    def on_epoch_start(self, trainer: TrainerProtocol, epoch: int) -> None:
        """Before each epoch (0-based). Again after a mid-epoch resume, then with
        `trainer.batch_in_epoch > 0`.
        """

    @_hook(per_batch=True)
    def on_batch_start(self, trainer: TrainerProtocol, batch_idx: int, batch: Any) -> None:
        """Before each micro-batch; `batch` is on the device already."""

    @_hook(per_batch=True, tensors=("loss",))
    def on_forward_end(self, trainer: TrainerProtocol, loss: torch.Tensor, outputs: Any) -> None:
        """After each forward pass. `loss` is a detached copy: unscaled, undivided, 0-dim, on its
        device. `outputs` is what the loss function has answered beside it, detached and not copied;
        None where that is nothing.
        """

    @_hook(per_batch=True)
    def on_backward_end(self, trainer: TrainerProtocol) -> None:
        """Once per update: after the last micro-batch's backward, gradients unscaled and complete,
        before clipping.
        """

    @_hook(per_batch=True, tensors=("total_norm", "clipped"))
    def on_gradients_clipped(
        self, trainer: TrainerProtocol, total_norm: torch.Tensor, clipped: torch.Tensor
    ) -> None:
        """Once per update, after clipping, before the step; only when clipping is on. `total_norm`
        is the norm before clipping, 0-dim.

        `clipped` is a 0-dim bool tensor on the same device: `bool(clipped)` is the reader's own
        synchronisation.
        """

    @_hook(per_batch=True)
    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        """After `optimizer.step()`; the gradients are still there. `skipped`: the step
        was refused, by the loss scaler or because of a number that is not finite.
        """

    @_hook(per_batch=True, tensors=("loss",))
    def on_batch_end(
        self, trainer: TrainerProtocol, batch_idx: int, loss: torch.Tensor, outputs: Any
    ) -> None:
        """After each micro-batch, and after `on_step_end` where there was one. `float(loss)` is the
        reader's own synchronisation. `outputs` as in `on_forward_end`; they are kept for this hook
        only where somebody asks for them.
        """

    @_hook()
    def on_validation_start(self, trainer: TrainerProtocol) -> None:
        """Before each validation: the model is in evaluation mode."""

    @_hook(copies={"metrics": copy_mapping})
    def on_validation_end(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:
        """After each validation, with what was found in all of its sets: `val_loss` and others."""

    @_hook(read_only=True)
    def on_validation_set_start(self, trainer: TrainerProtocol, name: str) -> None:
        """Before each set of a validation of a `Trainer` or of a host; `name` is that of the set,
        `val` where it is the only one.
        """

    @_hook(read_only=True, tensors=("loss",))
    def on_validation_batch_end(  # noqa: PLR0917
        self,
        trainer: TrainerProtocol,
        name: str,
        batch_idx: int,
        batch: Any,
        loss: torch.Tensor,
        outputs: Any,
    ) -> None:
        """After each batch of a set; `batch_idx` counts those of this process. What waits for other
        processes is refused here, for they may have more batches, or fewer.
        """

    @_hook(read_only=True, copies={"metrics": copy_mapping})
    def on_validation_set_end(
        self, trainer: TrainerProtocol, name: str, metrics: Mapping[str, float]
    ) -> None:
        """After each set; `metrics` has what was found in it, by the names without the set's:
        `loss` and those of `Trainer(metrics=...)`. Empty where a signal cut it short.
        """

    @_hook(copies={"metrics": copy_mapping})
    def on_epoch_end(
        self,
        trainer: TrainerProtocol,
        epoch: int,
        train_loss: float,
        val_loss: float | None,
        metrics: Mapping[str, float],
    ) -> None:
        """After the epoch's validation. `val_loss` is None where no validation ran in this
        epoch.
        """

    @_hook(copies={"metrics": copy_mapping})
    def on_log(
        self,
        trainer: TrainerProtocol,
        metrics: Mapping[str, float],
        step: int,
        event: int,
        time: float,
    ) -> None:
        """Every log event; plain floats, a copy for each callback. The one place for writers:
        console, JSON lines, TensorBoard. `event` is its number over all resumes, `time` the seconds
        since 1970 at which it was logged.
        """

    @_hook(read_only=True)
    def on_log_text(  # noqa: PLR0917
        self,
        trainer: TrainerProtocol,
        name: str,
        text: str,
        step: int,
        event: int,
        time: float,
    ) -> None:
        """Every `trainer.log_text(name, text)`: a text for people, such as a sample of a language
        model. For writers, as `on_log` is.
        """

    @_hook(per_batch=True, answers=True)
    def should_stop_training(self, trainer: TrainerProtocol) -> bool | StopRequest | None:
        """Asked of every callback after each update and each epoch end. Answers are OR-ed, over
        processes too; nothing is latched; so only read here.
        """

    @_hook(answers=True, read_only=True)
    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object] | None:
        """After all other hooks of that boundary. Returns this callback's state as plain data and
        tensors (they are copied).
        """

    @_hook(read_only=True)
    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        """After the snapshot is durable under its final name, at the next boundary; of several
        processes, in the main one.
        """

    @_hook(may_refuse=True, read_only=True)
    def on_snapshot_search(self, trainer: TrainerProtocol) -> None:
        """Before the run looks for the newest snapshot to go on from. `output_dir` is there and
        held, and what is put there now counts; of several processes, in the main one. Not called
        for a fresh start, and where a snapshot is named.

        `trainer.run_id` is that of the run in `output_dir`, empty where there is none.
        """

    @_hook(
        may_refuse=True, read_only=True, copies={"checkpoint": CheckpointView, "state": pick_state}
    )
    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        """After model, optimizer, scheduler, counters and RNG are restored, before
        `on_train_start`.

        `state` is what this callback returned from `on_snapshot_save`, a copy; None where the
        snapshot has none of it. It is also `checkpoint["callback_state"][NAME]`, NAME being its
        class name or its `state_key`. (Who calls the hook passes the states of all by their keys.)
        """

    @_hook(read_only=True)
    def on_exception(self, trainer: TrainerProtocol, exception: BaseException) -> None:
        """For anything that ends the run by an exception, KeyboardInterrupt included."""

    @_hook(read_only=True, copies={"result": copy_result})
    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        """Once, whichever way the run ends; `result.status` is `finished`, `stopped`, `failed`,
        `interrupted` or `terminated`.
        """

    @_hook(read_only=True)
    def on_final_saved(self, trainer: TrainerProtocol, path: Path) -> None:
        """After `on_train_end`, once the finished model is durable in `path`, which is
        `OUTPUT_DIR/final`; of several processes, in the main one. Not called where none is written:
        without `output_dir`, and of a run that failed or is to go on later. Nothing can be logged
        any more.
        """


HOOKS: Final[tuple[str, ...]] = tuple(SPECS)
"""Every hook's name, in the order of the class."""
