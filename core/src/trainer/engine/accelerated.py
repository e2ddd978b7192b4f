"""A run whose models and optimizers Accelerate has prepared: it averages, scales and steps. Knows
Accelerate by what it is handed, and imports it never.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError, TrainerConfig
from ..step.precision import Precision

__all__ = ["AcceleratedPrecision", "PreparedLoader", "is_prepared", "settle"]

logger: logging.Logger = logging.getLogger("trainer")

_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")


def settle(config: TrainerConfig, accelerator: Any) -> TrainerConfig:
    """Returns `config` with the device, the precision and the accumulation that are Accelerate's.

    Raises:
        ConfigError: it says otherwise, or Accelerate divides models in a way that cannot be saved.
    """
    kind = accelerator.distributed_type.name
    if kind not in _KINDS:
        raise ConfigError(
            f"accelerator: {kind} divides the model itself, which a run cannot save. Use one of "
            f"{', '.join(_KINDS)}, or Run without it under torchrun, with fully_shard."
        )
    steps, own = accelerator.gradient_accumulation_steps, config.gradient_accumulation_steps
    if own not in (1, steps):
        raise ConfigError(
            f"gradient_accumulation_steps is {own}, and Accelerator's is {steps}. Give it to "
            "Accelerator alone."
        )
    if config.precision not in ("fp32", "auto"):
        raise ConfigError(
            f"precision is {config.precision!r}, and Accelerator computes in "
            f"{accelerator.mixed_precision!r}. Give it to Accelerator(mixed_precision=...) alone."
        )
    device = str(accelerator.device)
    device = "cpu" if device.startswith("cpu") else device  # of several processes it is cpu:0
    precision = _read_precision(accelerator)
    return dataclasses.replace(
        config, device=device, precision=precision, gradient_accumulation_steps=steps
    )


def _read_precision(accelerator: Any) -> Any:
    """Returns what is really used: Accelerate drops what a device cannot do, and says nothing."""
    asked = accelerator.mixed_precision
    used = asked if accelerator.native_amp and asked in ("bf16", "fp16") else "fp32"
    if asked == "fp16" and used != asked and accelerator.is_main_process:
        text = (
            "Accelerator(mixed_precision='fp16') has no effect on a %s: this run computes in fp32."
        )
        logger.warning(text, accelerator.device.type)
    return used


class AcceleratedPrecision(Precision):
    """The arithmetic of an accelerator, which scales and divides the loss, and steps."""

    def __init__(self, accelerator: Any) -> None:
        """Takes its scaler, where it has one."""
        self._accelerator = accelerator
        super().__init__("fp32", accelerator.device)

    def reset(self) -> None:
        """Goes on with the loss scale that the accelerator has."""
        super().reset()
        self.scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        self._scale = 1.0 if self.scaler is None else self.scaler.get_scale()

    def context(self) -> contextlib.AbstractContextManager[object]:
        """Returns what computes in this arithmetic while it is entered."""
        context: contextlib.AbstractContextManager[object] = self._accelerator.autocast()
        return context

    @property
    def divisor(self) -> int:
        """The accelerator divides each loss by its number of accumulated batches."""
        return int(self._accelerator.gradient_accumulation_steps)

    def backward(
        self, loss: Tensor, steps: int = 1, inputs: Sequence[Tensor] | None = None
    ) -> None:
        """Backward pass of the scaled loss, which the accelerator divides."""
        self._accelerator.backward(loss, inputs=inputs)

    def _unscale(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """The scaler knows the optimizer inside: it would unscale that once more in its step."""
        self._accelerator.unscale_gradients(optimizer)

    def join(self, verdict: Tensor | float, optimizer: torch.optim.Optimizer) -> Tensor:
        """Returns `verdict`: what the scaler has found it looks at in its step."""
        return torch.as_tensor(verdict)

    def step(self, optimizer: torch.optim.Optimizer, *, is_checked: bool = False) -> bool:
        """Steps the optimizer, and the scale; returns whether the step was skipped. The accelerator
        looks at the gradients itself.

        Raises:
            ConfigError: the accelerator holds the step back.
        """
        if not self._accelerator.sync_gradients:
            raise ConfigError(
                "an update ends here, and the accelerator goes on accumulating. Put the forward "
                "and the backward pass of each batch into `with accelerator.accumulate(model):`."
            )
        optimizer.step()
        self._is_unscaled = False
        if self.scaler is not None:
            self._scale = self.scaler.get_scale()
        return bool(getattr(optimizer, "step_was_skipped", False))


class PreparedLoader:
    """A loader that Accelerate has prepared: it divides the data and moves batches itself. Its
    order follows the epoch.

    Attributes:
        loader: what Accelerate has made.
        seeded: the DataLoader inside, whose generators decide on the order.
    """

    is_divided = True

    def __init__(self, loader: Any) -> None:
        """Wraps it."""
        self.loader = loader
        self.seeded: Any = loader.base_dataloader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Seeds it for `epoch`."""
        self.loader.set_epoch(epoch)


def is_prepared(loader: Iterable[Any]) -> bool:
    """Whether Accelerate has prepared `loader`; where it has, its module is imported."""
    room = sys.modules.get("accelerate.data_loader")
    return room is not None and isinstance(loader, room.DataLoaderStateMixin)
