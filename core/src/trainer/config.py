"""What a run does, apart from the objects it works on. Checks itself; imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from trainer_callback import UsageError, option_text
from trainer_callback.checks import is_count, is_positive

__all__ = ["ConfigError", "TrainerConfig", "read_path", "refuse_settings"]


_MOST: Final = 2**63 - 1
"""What a tensor, and a generator's seed with a rank added to it, can hold."""


class ConfigError(UsageError, ValueError):
    """A setting is out of range, contradicts another, or has moved."""


def read_path(value: object, name: str) -> Path:
    """Returns the path that `value` means now, absolute: the working directory may change.

    Raises:
        ConfigError: it is empty, or no path, or of a user who is not known.
    """
    try:
        text = os.fsdecode(value)  # type: ignore[arg-type]
        if "\0" in text:
            raise TypeError("it has a character of code 0")
        os.fsencode(text)
        if text:
            return Path(text).expanduser().absolute()
    except (TypeError, RuntimeError, UnicodeError) as error:
        text = f"{option_text(name)} must be a path, got {value!r}: {error}."
        raise ConfigError(text) from error
    raise ConfigError(f"{option_text(name)} is empty. Name a directory; '.' is the one you are in.")


_EARLY_STOPPING: Final = """
Early stopping is a callback now: pip install trainer-plugin-early-stopping
    from trainer_early_stopping import EarlyStoppingCallback
    callback = EarlyStoppingCallback(patience=5, min_delta=0.001, restore_best=True)
    trainer = Trainer(..., callbacks=[callback])"""
_GRADIENT_MONITOR: Final = """
The gradient monitor is a callback now: pip install trainer-plugin-grad-monitor
    from trainer_gradient_monitor import GradientMonitorCallback
    callback = GradientMonitorCallback(monitor_at_snapshots=True)
    trainer = Trainer(..., callbacks=[callback])"""


_MOVED: Final[Mapping[str, str]] = {
    "early_stop_patience": _EARLY_STOPPING,
    "early_stop_min_delta": _EARLY_STOPPING,
    "early_stop_restore_best": _EARLY_STOPPING,
    "enable_gradient_monitor": _GRADIENT_MONITOR,
}

_TRIED: Final = 2
"""Updates, and batches of a validation set, of a dry run."""

_Config = TypeVar("_Config")
_Constructor = TypeVar("_Constructor", bound=Callable[..., None])


def _answer_unknown(cls: type[_Config]) -> type[_Config]:
    """Lets a dataclass answer options that have become plugins with the new code, and unknown ones
    with the known. Its signature stays the one of its fields, which an editor completes.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: _Config, *values: Any, **options: Any) -> None:  # noqa: N807
        for name in options:
            if name in _MOVED:
                raise ConfigError(f"TrainerConfig has no {name!r}.{_MOVED[name]}")
            if name not in known:
                raise ConfigError(
                    f"TrainerConfig has no {name!r}. It has {', '.join(sorted(known))}."
                )
        make(self, *values, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


def refuse_settings(constructor: _Constructor) -> _Constructor:
    """Lets a constructor say of a setting that it is one of its `config`."""
    own = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def __init__(*values: Any, **options: Any) -> None:  # noqa: N807
        known = {field.name for field in dataclasses.fields(TrainerConfig)}
        for name in options.keys() & known - own.keys():
            raise ConfigError(
                f"{name} is a setting. Write config=TrainerConfig({name}={options[name]!r}, ...)."
            )
        constructor(*values, **options)

    return cast(_Constructor, __init__)


@_answer_unknown
@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of a run.

    Args:
        epochs: passes over the training data
        max_steps: stop after this many optimizer updates, counted over all resumes
        max_time: stop after this many seconds of this process, less what the longest validation
            so far took, so that there is time for the last one
        max_train_batches: use this many batches of an epoch at most, in each process; a share of
            them, if it is below 1
        max_val_batches: use this many batches of each validation set at most, all processes
            together; a share of them, if it is below 1
        dry_run: try everything with two updates and two batches of each validation set, in a
            directory that is removed at the end
        min_epochs: callbacks cannot stop the run before that many epochs are done
        output_dir: where the run writes; `~` is the home directory, and a relative one is below the
            directory in which the config is made; without it nothing is written
        run_name: what people and trackers call the run; without it the name of the output directory
        overwrite: start afresh in an output directory that holds a run, removing that run's files
        seed: seed of the data order and of every random number generator
        gradient_accumulation_steps: micro-batches per optimizer update
        max_grad_norm: clip the global 2-norm of the gradients to this
        scheduler_interval: a scheduler is stepped after each update, or after each epoch behind its
            validation; one that follows a metric, after each validation, or that of the epoch
        scheduler_monitor: the metric that ReduceLROnPlateau follows, such as val_loss
        resume_learning_rate: where a run resumes, make this the learning rate that its schedule is
            built on, once; all other rates change by the same factor
        precision: arithmetic of the forward pass; fp16 scales the loss; tf32 is fp32 whose matrix
            products round their factors on the tensor cores of a CUDA card; auto is bf16 where the
            device is faster with it, else fp32
        compile: run the model through torch.compile; or the mode of it
        checkpoint_activations: names of modules, such as blocks.*, whose activations are computed
            again in the backward pass: less memory for more time, and the same bits
        device: auto, cpu, cuda, cuda:N or mps
        eval_interval: validate also every so many updates
        log_interval: updates between two log events
        snapshot_interval: updates between two snapshots
        snapshot_epochs: take a snapshot after each epoch
        snapshot_sync: write snapshots in the training thread instead of the background
        keep_snapshots: how many of the newest snapshots are kept
        snapshot_frozen: keep frozen parameters in snapshots; without it a digest of them, and a
            resume takes them from the model as it was built
        on_nonfinite: a NaN or infinite loss or gradient stops the run, or the update is skipped
            and its buffers are put back (10 in a row stop it); with a fused optimizer on
            CUDA, stop is decided behind the update, at the next log event
        check_gradients: look for NaN and infinities in the gradients before each update
    """

    epochs: int = 10
    max_steps: int | None = None
    max_time: float | None = None
    max_train_batches: int | float | None = None
    max_val_batches: int | float | None = None
    dry_run: bool = False
    min_epochs: int = 0
    output_dir: Path | None = None
    run_name: str | None = None
    overwrite: bool = False
    seed: int = 0
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = None
    scheduler_interval: Literal["update", "epoch"] = "update"
    scheduler_monitor: str | None = None
    resume_learning_rate: float | None = None
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: Literal[
        False, True, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = False
    checkpoint_activations: str | None = None
    device: str = "auto"
    eval_interval: int | None = None
    log_interval: int = 10
    snapshot_interval: int | None = None
    snapshot_epochs: bool = False
    snapshot_sync: bool = False
    keep_snapshots: int = 3
    snapshot_frozen: bool = True
    on_nonfinite: Literal["stop", "skip"] = "stop"
    check_gradients: bool = True

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            place = read_path(self.output_dir, "output_dir")
            object.__setattr__(self, "output_dir", place)
        for name in ("epochs", "gradient_accumulation_steps", "log_interval", "keep_snapshots"):
            self._check_count(name, 1)
        for name in ("max_steps", "eval_interval", "snapshot_interval"):
            if getattr(self, name) is not None:
                self._check_count(name, 1)
        for name in ("min_epochs", "seed"):
            self._check_count(name, 0)
        for name in ("max_time", "max_grad_norm", "resume_learning_rate"):
            value = getattr(self, name)
            self._require(name, value is None or is_positive(value), "a finite number above 0")
        for name in ("max_train_batches", "max_val_batches"):
            value = getattr(self, name)
            is_share = isinstance(value, float) and 0 < value < 1
            wanted = "a number of batches, or a share between 0 and 1 such as 0.1"
            self._require(name, value is None or is_share or is_count(value, 1), wanted)
        self._check_choice("precision", ("auto", "fp32", "tf32", "bf16", "fp16"))
        modes = (False, True, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
        self._check_choice("compile", modes)
        self._check_choice("on_nonfinite", ("stop", "skip"))
        self._check_choice("scheduler_interval", ("update", "epoch"))
        monitor: object = self.scheduler_monitor
        is_name = monitor is None or (isinstance(monitor, str) and monitor != "")
        pattern: object = self.checkpoint_activations
        is_text = pattern is None or (isinstance(pattern, str) and pattern.strip() != "")
        self._require("checkpoint_activations", is_text, "names of modules, such as 'blocks.*'")
        run: object = self.run_name
        is_line = run is None or (isinstance(run, str) and run.strip() != "" and run.isprintable())
        self._require("run_name", is_line, "one line of text that is not empty")
        self._require("scheduler_monitor", is_name, "the name of a metric, such as 'val_loss'")
        if self.output_dir is None and (self.snapshot_interval or self.snapshot_epochs):
            raise ConfigError(
                f"snapshots need a place: give {option_text('output_dir', 'runs/a')}, or another."
            )

    def shortened(self) -> TrainerConfig:
        """Returns the settings of the dry run that is asked for, or these."""
        if not self.dry_run:
            return self
        import secrets  # a command line has no time for what few runs need
        import tempfile

        place = None if self.output_dir is None else Path(tempfile.gettempdir())
        return dataclasses.replace(
            self,
            epochs=1,
            max_steps=_TRIED,
            min_epochs=0,
            max_train_batches=_TRIED * self.gradient_accumulation_steps,
            max_val_batches=_TRIED,
            output_dir=None if place is None else place / f"trainer-dry-run-{secrets.token_hex(8)}",
            log_interval=1,
        )

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        self._require(name, is_count(value, least), f"an integer of at least {least}")
        self._require(name, value <= _MOST, f"at most {_MOST}")

    def _check_choice(self, name: str, choices: tuple[str | bool, ...]) -> None:
        known = ", ".join(map(str, choices))
        self._require(name, getattr(self, name) in choices, f"one of {known}")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{option_text(name)} must be {wanted}, got {getattr(self, name)!r}.")
