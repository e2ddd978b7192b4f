"""The arithmetic of the forward pass, and the scaling of the loss that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor

__all__ = ["Precision"]

_LEAST_SCALE: Final = 2.0**-16
"""A gradient that overflows at this scale, 32 halvings below the first one, is not finite."""


class Precision:
    """Mixed precision as torch.amp does it: bf16 by autocast, fp16 by autocast and a GradScaler,
    fp32 by nothing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Makes the precision `fp32`, `bf16` or `fp16` for `device`."""
        self._device = device.type
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self._scales = name == "fp16"
        self.reset()

    def reset(self) -> None:
        """Starts with the first loss scale again, whatever an update that failed has left."""
        self.scaler: torch.amp.GradScaler | None = (
            torch.amp.GradScaler(self._device) if self._scales else None
        )
        self._scale = 1.0 if self.scaler is None else self.scaler.get_scale()

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before its backward pass; None where it is not scaled."""
        return None if self.scaler is None else self._scale

    def wrap(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Returns `forward` in this arithmetic; itself where there is nothing to do."""
        if self._dtype is None:
            return forward
        return cast("Callable[..., Tensor]", torch.autocast(self._device, self._dtype)(forward))

    def backward(self, loss: Tensor) -> None:
        """Backward pass of the scaled loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer, others: Iterable[Tensor]) -> None:
        """Makes the gradients of the optimizer's parameters, and of `others`, those of the unscaled
        loss.
        """
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
            for parameter in others:
                if parameter.grad is not None:
                    parameter.grad.mul_(1.0 / self._scale)

    @property
    def is_searching(self) -> bool:
        """Whether a gradient that is not finite may be due to the loss scale, which can fall."""
        return self.scaler is not None and self._scale > _LEAST_SCALE

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Steps the optimizer; returns whether the scaler refused to (an infinite or NaN
        gradient).
        """
        if self.scaler is None:
            optimizer.step()
            return False
        self.scaler.step(optimizer)
        self.scaler.update()
        before, self._scale = self._scale, self.scaler.get_scale()  # the one fetch of it
        return self._scale < before

    def skip(self) -> None:
        """Closes an update whose gradients were unscaled and will not be used."""
        if self.scaler is not None:
            self.scaler.update(self._scale)

    def lower_scale(self) -> None:
        """Closes an update whose gradients are not finite as `GradScaler.update` does where it has
        found that out: not all of them are the optimizer's, or of this process.
        """
        if self.scaler is not None:
            self._scale *= self.scaler.get_backoff_factor()
            self.scaler.update(self._scale)
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})

    def state(self) -> dict[str, Any] | None:
        """Returns the scaler's state, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from the scaler of a snapshot; a run that had none starts with a fresh one."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))
            self._scale = self.scaler.get_scale()
