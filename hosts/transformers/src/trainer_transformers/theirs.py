"""A callback of transformers in a `trainer.Trainer`: what it needs is made of what that tells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from trainer_callback import StopRequest, TrainerCallback, TrainerProtocol, UsageError
from trainer_callback.errors import show

from .metrics import PREFIX
from .plugins import Plugins
from .private import kept_accelerator

__all__ = ["FromTransformers"]

logger: logging.Logger = logging.getLogger("trainer")

_KEPT = ("log_history", "best_metric", "best_global_step")
"""What a snapshot keeps of the state of a run, as plain data."""


class FromTransformers(TrainerCallback):
    """Calls a `transformers.TrainerCallback`, such as `WandbCallback()`, in a run of ours.

    `args`, `state` and `control` are made from the run. Metrics have the names that they have
    there: `val_loss` is `eval_loss`. Where the callback sets `control.should_training_stop` the run
    ends, where it sets `should_save` a snapshot is taken; there is no such answer for
    `should_evaluate` and `should_epoch_stop`, which is said once. What an `ExportableState` exports
    is in the snapshots.

    Attributes:
        callback: that callback.
    """

    logs_metrics: tuple[str, ...] | None = ()

    def __init__(self, callback: object, **arguments: Any) -> None:
        """Keeps the callback.

        Args:
            callback: the callback, made.
            arguments: further arguments of `TrainingArguments` that it looks at, such as
                `metric_for_best_model="eval_loss"`.

        Raises:
            UsageError: it is no such callback, or one that has plugins in it.
        """
        if not isinstance(callback, transformers.TrainerCallback):
            raise UsageError(
                f"FromTransformers takes a transformers.TrainerCallback, made, and not "
                f"{show(callback)}. Write FromTransformers(WandbCallback())."
            )
        if isinstance(callback, Plugins):
            raise UsageError(
                "FromTransformers: Plugins are plugins already. Give what is in them to "
                "the trainer itself: callbacks=[EarlyStoppingCallback()]."
            )
        self.callback: Any = callback
        self.state_key: str | None = f"FromTransformers.{type(callback).__name__}"
        self._arguments = arguments
        self._args: Any = None
        self._state, self._control = TrainerState(), TrainerControl()
        self._is_in_update = False
        self._told: set[str] = set()

    # The start and the end

    def on_snapshot_load(
        self, trainer: TrainerProtocol, checkpoint: Mapping[str, Any], state: Any
    ) -> None:
        self._state, self._control = TrainerState(), TrainerControl()
        if state is None:
            return
        for name in _KEPT:
            setattr(self._state, name, state["run"][name])
        for name, value in state["attributes"].items():
            setattr(self.callback, name, value)

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self._state, self._control = TrainerState(), TrainerControl()
        self._args, self._is_in_update = self._make_args(trainer), False
        state = self._state
        state.max_steps = trainer.max_steps or 0
        state.num_train_epochs = trainer.max_epochs or 0
        state.logging_steps = self._args.logging_steps
        state.is_world_process_zero = state.is_local_process_zero = trainer.is_main_process
        self._call("on_init_end", trainer)
        self._call("on_train_begin", trainer)

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if result.status in ("finished", "stopped"):  # after an exception theirs is not called
            self._call("on_train_end", trainer)

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        exports = isinstance(self.callback, ExportableState)
        attributes = dict(self.callback.state()["attributes"]) if exports else {}
        run = {name: getattr(self._state, name) for name in _KEPT}
        return {"run": {**run, "log_history": [*run["log_history"]]}, "attributes": attributes}

    def on_snapshot_saved(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._call("on_save", trainer)
        self._control.should_save = False

    # Epochs and updates

    def on_epoch_start(self, trainer: TrainerProtocol, epoch: int) -> None:
        self._control.should_epoch_stop = False
        self._call("on_epoch_begin", trainer)

    def on_batch_start(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        if not self._is_in_update:
            self._is_in_update = True
            control = self._control
            control.should_log = control.should_evaluate = control.should_save = False
            self._call("on_step_begin", trainer)

    def on_backward_end(self, trainer: TrainerProtocol) -> None:
        if trainer.max_grad_norm is None:
            self._call("on_pre_optimizer_step", trainer)

    def on_gradients_clipped(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._call("on_pre_optimizer_step", trainer)

    def on_step_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._is_in_update = False
        self._call("on_optimizer_step", trainer, done=trainer.step - 1)  # as they count there

    def on_batch_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        if self._is_in_update:
            self._call("on_substep_end", trainer)
        else:
            self._state.global_step = trainer.step
            self._call("on_step_end", trainer)
            self._obey(trainer)

    def on_epoch_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._call("on_epoch_end", trainer)
        self._obey(trainer)

    def on_log(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:  # type: ignore[override]
        if self._args is None:
            return
        self._follow(trainer)
        logs = {**_rename(metrics), "epoch": self._state.epoch}
        self._state.log_history.append({**logs, "step": self._state.global_step})
        self._call("on_log", trainer, logs=logs)

    def on_validation_end(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:
        if not metrics:
            return
        found = {**_rename(metrics), "epoch": self._state.epoch}
        self._call("on_evaluate", trainer, metrics=found)
        self._note_best(found)
        self._obey(trainer)

    def should_stop_training(self, trainer: TrainerProtocol) -> StopRequest | None:
        if not self._control.should_training_stop:
            return None
        return StopRequest("callback", f"{type(self.callback).__name__} asked for the end.")

    # What it is handed

    def _call(
        self, event: str, trainer: TrainerProtocol, done: int | None = None, **named: Any
    ) -> None:
        if self._args is None:
            return
        self._follow(trainer)
        if done is not None:
            self._state.global_step = done
        answer = getattr(self.callback, event)(
            self._args,
            self._state,
            self._control,
            model=trainer.model,
            processing_class=None,
            optimizer=trainer.optimizer,
            lr_scheduler=trainer.scheduler,
            train_dataloader=None,
            eval_dataloader=None,
            **named,
        )
        if answer is not None:
            self._control = answer

    def _follow(self, trainer: TrainerProtocol) -> None:
        batches = trainer.train_batches
        share = trainer.batch_in_epoch / batches if batches else 0.0
        self._state.epoch = trainer.epoch + share
        self._state.global_step = trainer.step

    def _obey(self, trainer: TrainerProtocol) -> None:
        control = self._control
        if control.should_save:
            control.should_save = False
            trainer.request_snapshot()
        for name in ("should_evaluate", "should_epoch_stop"):
            if getattr(control, name) and name not in self._told:
                self._told.add(name)
                logger.warning(
                    "%s has set control.%s, which a trainer.Trainer does not follow.",
                    *(type(self.callback).__name__, name),
                )

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        """Does what `transformers.Trainer` does behind an evaluation."""
        name, state = self._args.metric_for_best_model, self._state
        if name is None:
            return
        value = metrics.get(name if name.startswith(PREFIX) else f"{PREFIX}_{name}")
        if value is None:
            return
        best = state.best_metric
        if best is None or (value > best if self._args.greater_is_better else value < best):
            state.best_metric, state.best_global_step = value, int(state.global_step)

    def _make_args(self, trainer: TrainerProtocol) -> Any:
        place = trainer.output_dir
        rate = trainer.optimizer.param_groups[0].get("initial_lr")
        settings: dict[str, Any] = {
            "output_dir": str(place) if place else "trainer_output",
            "num_train_epochs": trainer.max_epochs or 1,
            "max_steps": -1 if trainer.max_epochs else (trainer.max_steps or -1),
            "gradient_accumulation_steps": trainer.gradient_accumulation_steps,
            "max_grad_norm": trainer.max_grad_norm or 0.0,
            "learning_rate": rate or trainer.optimizer.param_groups[0].get("lr", 0.0),
            "eval_strategy": "epoch" if trainer.has_validation else "no",
            "save_strategy": "epoch" if place else "no",
            "run_name": trainer.run_name,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": trainer.device.type == "cpu",
            **self._arguments,
        }
        with kept_accelerator():
            return transformers.TrainingArguments(**settings)


def _rename(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics by the names that they have there."""
    return {
        f"{PREFIX}_{name.removeprefix('val_')}" if name.startswith("val_") else name: value
        for name, value in metrics.items()
    }
