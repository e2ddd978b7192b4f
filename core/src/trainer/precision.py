"""The arithmetic of the forward pass, and the scaling of the loss that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Precision"]


class Precision:
    """Mixed precision as torch.amp does it: bf16 by autocast, fp16 by autocast and a GradScaler,
    fp32 by nothing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Makes the precision `fp32`, `bf16` or `fp16` for `device`."""
        self._device = device.type
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler: torch.amp.GradScaler | None = (
            torch.amp.GradScaler(self._device) if name == "fp16" else None
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

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the gradients those of the unscaled loss."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

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

    def state(self) -> dict[str, Any] | None:
        """Returns the scaler's state, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from the scaler of a snapshot; a run that had none starts with a fresh one."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))
            self._scale = self.scaler.get_scale()
