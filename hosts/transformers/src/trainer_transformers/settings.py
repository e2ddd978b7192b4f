"""The settings of a Hugging Face trainer by the names that plugins know."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trainer import TrainerConfig
from trainer.counters import Position
from trainer.hosting import HostedRun

from .host import Host

__all__ = [
    "count_batches",
    "describe_settings",
    "find_folder",
    "find_place",
    "follow_place",
    "make_config",
    "note_host",
    "unwrap",
]

_FOLDER: Final = "plugins"
"""Where plugins write, below the trainer's own output directory."""

_NEVER: Final = 2**62

logger: logging.Logger = logging.getLogger("trainer")


def make_config(trainer: Host, output_dir: Path | None) -> TrainerConfig:
    """Returns the settings of the run that `train` has begun, whose length is known.

    Args:
        output_dir: where plugins write; None: `plugins` in the trainer's output directory.
    """
    args, state = trainer.args, trainer.state
    is_cut = args.max_steps <= 0 and args.num_train_epochs != int(args.num_train_epochs)
    intervals: dict[str, Any] = {"log_interval": _NEVER}
    if args.logging_strategy == IntervalStrategy.STEPS:
        intervals["log_interval"] = max(int(state.logging_steps), 1)
    if args.eval_strategy == IntervalStrategy.STEPS:
        intervals["eval_interval"] = max(int(state.eval_steps), 1)
    if args.save_strategy == SaveStrategy.STEPS and state.save_steps > 0:
        intervals["snapshot_interval"] = max(int(state.save_steps), 1)
    return TrainerConfig(
        epochs=max(int(state.num_train_epochs), 1),
        max_steps=int(state.max_steps) if args.max_steps > 0 or is_cut else None,
        output_dir=find_folder(args, output_dir),
        run_name=_read_name(args),
        seed=max(args.seed, 0),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        max_grad_norm=float(args.max_grad_norm) if (args.max_grad_norm or 0) > 0 else None,
        precision=_read_precision(trainer),
        snapshot_epochs=args.save_strategy == SaveStrategy.EPOCH,
        **intervals,
    )


def find_folder(args: Any, output_dir: Path | None) -> Path:
    """Returns where plugins write; see `make_config`."""
    return Path(args.output_dir or "trainer_output") / _FOLDER if output_dir is None else output_dir


def _read_name(args: Any) -> str | None:
    name = args.run_name
    return name if name and name != args.output_dir and name.isprintable() else None


def _read_precision(trainer: Host) -> Any:
    """Returns the arithmetic that is really used: accelerate drops what a device cannot do."""
    accelerator = trainer.accelerator
    if accelerator.native_amp and accelerator.mixed_precision in ("bf16", "fp16"):
        return accelerator.mixed_precision
    return "tf32" if trainer.args.tf32 else "fp32"


def describe_settings(trainer: Host) -> Mapping[str, object]:
    """Returns the trainer's own arguments for trackers, as `args.NAME`."""
    found: dict[str, object] = {"model": type(trainer.model).__name__}
    for name, value in trainer.args.to_sanitized_dict().items():
        is_plain = value is None or isinstance(value, (bool, int, float, str))
        if name != "output_dir":  # another for each run, and `trainer.output_dir` has it
            found[f"args.{name}"] = value if is_plain else str(value)
    return found


def _make_saved_behind(args: Any, state: Any) -> Callable[[Position], bool]:
    """Returns what says whether a checkpoint is saved behind the update under way."""
    strategy, every, last = args.save_strategy, state.save_steps, state.max_steps
    is_known = args.max_steps > 0

    def is_end(position: Position) -> bool:
        return position.update >= last and (is_known or position.is_last)

    if strategy == SaveStrategy.STEPS and every > 0:
        return lambda position: position.update % every == 0 or is_end(position)
    if strategy == SaveStrategy.EPOCH:
        return lambda position: position.is_last or is_end(position)
    return lambda position: False


def note_host(run: HostedRun, trainer: Host) -> None:
    """Tells the run what only its host knows."""
    view, state = run.view, trainer.state
    view.total_steps = int(state.max_steps)
    view.has_epochs = state.num_train_epochs < sys.maxsize
    view.is_saved_behind = _make_saved_behind(trainer.args, state)
    view.read_loss_scale = lambda: _read_scale(trainer.accelerator)


def _read_scale(accelerator: Any) -> float | None:
    scaler = accelerator.scaler
    return None if scaler is None or not accelerator.native_amp else float(scaler.get_scale())


def count_batches(loader: object) -> int | None:
    """Returns the batches of an epoch; None: not known."""
    with contextlib.suppress(TypeError, NotImplementedError):
        return len(loader)  # type: ignore[arg-type]
    return None


def find_place(trainer: Host, batches: int | None) -> tuple[int, int, int]:
    """Returns epoch, updates and batches of the epoch that are done where the trainer begins."""
    args, done = trainer.args, int(trainer.state.global_step)
    if batches is None:
        return 0, done, 0
    window = args.gradient_accumulation_steps
    epoch, updates = divmod(done, max(math.ceil(batches / window), 1))
    return epoch, done, 0 if args.ignore_data_skip else updates * window


def follow_place(position: Position, place: tuple[int, int, int], *, known: bool) -> int:
    """Moves `position`, which the state of plugins has told, to where the trainer goes on, and
    returns the epoch that begins there. They differ where an epoch has another length now.

    Args:
        place: what `find_place` has found.
        known: the length of an epoch is known; else the trainer knows no epochs, and passes over
            all batches that it has had.
    """
    epoch, _, batch = place
    if not known:
        if position.epoch:
            logger.warning(
                "the training data has no length: the trainer does not find its place in it, and "
                "begins it anew, in epoch %d.",
                position.epoch,
            )
        return position.epoch + int(position.epoch_done)
    done = position.epoch_done and position.epoch + 1 == epoch and not batch
    if not done:
        position.epoch, position.batch, position.epoch_done = epoch, batch, False
    return epoch


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the plain optimizer inside what accelerate has made of it in an earlier `train`."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    found: torch.optim.Optimizer = optimizer
    return found
