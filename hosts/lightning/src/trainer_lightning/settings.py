"""A Lightning trainer's settings by the names of `TrainerConfig`, what of them is refused, and what
is only approximately as in a `trainer.Trainer`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer import TrainerConfig
from trainer.hosting import HostedRun
from trainer_callback import UsageError

from .framework import is_a

__all__ = [
    "check_trainer",
    "describe_hparams",
    "find_saves",
    "list_approximations",
    "make_config",
    "refuse_two_restorers",
    "saves_on_exception",
    "tell_view",
]

_PRECISIONS: Final = {"16": "fp16", "bf16": "bf16", "32": "fp32", "64": "fp32"}
_UNLIMITED: Final = 2**31
_NO_BATCHES: Final = (
    "Return the loss in validation_step, and what plugins may look at beside it: "
    'return {"loss": loss, "logits": logits}.'
)
_PLAIN: Final = (bool, int, float, str, type(None))


def make_config(trainer: Any, output_dir: Path | None) -> TrainerConfig:
    """Returns what plugins see as `trainer.config`."""
    value, by_norm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm in (None, "norm")
    bits = str(trainer.precision).split("-")[0]
    endless = trainer.max_epochs is None or trainer.max_epochs < 0
    return TrainerConfig(
        output_dir=output_dir,
        epochs=_UNLIMITED if endless else max(trainer.max_epochs, 1),
        min_epochs=trainer.min_epochs or 0,
        gradient_accumulation_steps=trainer.accumulate_grad_batches,
        max_grad_norm=float(value) if value and by_norm else None,
        precision=_PRECISIONS.get(bits, "fp32"),  # type: ignore[arg-type]
        log_interval=trainer.log_every_n_steps or _UNLIMITED,
        device=trainer.strategy.root_device.type,
    )


def check_trainer(trainer: Any) -> None:
    """Refuses what the plugins of a `trainer.Trainer` cannot be told of.

    Raises:
        UsageError: with what to do.
    """
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    known = is_a(strategy, "SingleDeviceStrategy") or is_a(strategy, "DDPStrategy")
    if not known or strategy.restore_checkpoint_after_setup:
        raise UsageError(
            f"Plugins: the strategy is {name}, under which no process has the whole model. Use "
            'Trainer(strategy="ddp") or one device.'
        )
    if not trainer.lightning_module.automatic_optimization:
        raise UsageError(
            "Plugins: the module has automatic_optimization = False, and steps its optimizers by "
            "itself, where nobody can tell what an update is. Use automatic optimization, or a "
            "loop of your own over trainer.Run."
        )
    if len(trainer.optimizers) != 1:
        raise UsageError(
            f"Plugins: the module has {len(trainer.optimizers)} optimizers, and plugins are told "
            "of the updates of one. Return one in configure_optimizers."
        )
    if is_a(trainer.optimizers[0], "LBFGS"):
        raise UsageError(
            "Plugins: LBFGS computes several losses and gradients in one step, and plugins are "
            "told of one. Use another optimizer."
        )


def _name_weights_changer(trainer: Any) -> str:
    """Returns the name of a callback of Lightning that puts other weights into the model at the
    end; empty: there is none.
    """
    names = ("WeightAveraging", "StochasticWeightAveraging")
    found = [each for each in trainer.callbacks if any(is_a(each, name) for name in names)]
    return type(found[0]).__name__ if found else ""


def refuse_two_restorers(run: HostedRun) -> None:
    """Refuses plugins that put weights back at the end beside a callback of Lightning that does.

    Raises:
        UsageError: names both.
    """
    names = sorted(each.name for each in run.manager.plugins if each.restores_weights)
    if names and (other := run.view.puts_weights_back):
        raise UsageError(
            f"Plugins: {other} and {' and '.join(names)} both put weights into the model at the "
            "end of the run, and the one would undo the other. Leave one out, or set the plugin's "
            "own option that restores (restore_best=False of early_stopping, swap_at_end=False of "
            "ema)."
        )


def describe_hparams(module: Any) -> dict[str, object]:
    """Returns the plain ones of the module's hyperparameters."""
    hparams: Mapping[str, object] = getattr(module, "hparams", {})
    found = {str(name): str(v) if isinstance(v, Path) else v for name, v in hparams.items()}
    return {name: value for name, value in found.items() if isinstance(value, _PLAIN)}


def tell_view(trainer: Any, run: HostedRun, read_scale: Callable[[], float | None]) -> None:
    """Tells the run what its plugins may ask for."""
    view, (updates, epochs) = run.view, find_saves(trainer)
    run.sets.remedy = _NO_BATCHES
    view.puts_weights_back = _name_weights_changer(trainer)
    view.read_loss_scale = read_scale
    view.is_saved_behind = lambda position: (
        any(position.update % each == 0 for each in updates)
        or (position.is_last and any((position.epoch + 1) % each == 0 for each in epochs))
    )


def find_saves(trainer: Any) -> tuple[list[int], list[int]]:
    """Returns at which updates, and behind which epochs, checkpoints are saved: those that are
    multiples of one of these numbers.
    """
    updates: list[int] = []
    epochs: list[int] = []
    for each in trainer.checkpoint_callbacks:
        options = re.search(r"\{.*\}", each.state_key)
        try:
            read = ast.literal_eval(options[0]) if options else {}
        except (ValueError, SyntaxError):
            read = {}
        updates += [read["every_n_train_steps"]] if read.get("every_n_train_steps") else []
        epochs += [read["every_n_epochs"]] if read.get("every_n_epochs") else []
    return updates, epochs


def saves_on_exception(trainer: Any) -> bool:
    """Whether a callback of Lightning saves a checkpoint when the run is over by an exception."""
    return any(
        is_a(each, "OnExceptionCheckpoint") or getattr(each, "save_on_exception", False)
        for each in trainer.callbacks
    )


def list_approximations(trainer: Any) -> Iterator[str]:
    """Yields a sentence for each thing that plugins are told otherwise than by a
    `trainer.Trainer`.
    """
    window, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    left = batches % window if math.isfinite(batches) else 0
    if left:
        yield (
            f"the last update of an epoch has {left} of {window} batches, and Lightning divides "
            f"their losses by {window}: its gradient is {left}/{window} of their mean"
        )
    if any(is_a(each, "GradientAccumulationScheduler") for each in trainer.callbacks):
        yield "trainer.gradient_accumulation_steps is that of the first epoch"
    inside = [each for each in find_saves(trainer)[0] if each]
    loader = trainer.train_dataloader
    if inside and not hasattr(loader, "state_dict"):
        yield (
            "checkpoints are saved inside epochs, and the training loader has no state_dict: "
            "Lightning begins its data anew when it goes on from one. torchdata has a "
            "StatefulDataLoader"
        )
    if inside and trainer.enable_validation:
        yield (
            "from a checkpoint that is saved at the last update of an epoch, Lightning goes on "
            "without the validation and the end of that epoch. Save at the ends of epochs"
        )
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        yield "gradients are clipped by value: on_gradients_clipped is not called"
    if is_a(trainer.strategy.checkpoint_io, "AsyncCheckpointIO"):
        yield "checkpoints are written in the background: on_snapshot_saved is not called"
    if saves_on_exception(trainer) and trainer.world_size > 1:
        yield "a checkpoint that is saved on an exception has no state of plugins"
    if str(trainer.precision).startswith("64"):
        yield "trainer.precision says fp32, and the model computes in float64"
