"""The arithmetic of the forward pass, and the scaling of the loss that fp16 needs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor

__all__ = ["Precision", "wrap_modules"]

_LEAST_SCALE: Final = 2.0**-16
"""A gradient that overflows at this scale, 32 halvings below the first one, is not finite."""


class Precision:
    """Mixed precision as torch.amp does it: bf16 by autocast, fp16 by autocast and a GradScaler,
    fp32 by nothing; tf32 by a setting of torch that a run puts back at its end.
    """

    def __init__(self, name: str, device: torch.device, *, several: bool = False) -> None:
        """Makes the precision `fp32`, `tf32`, `bf16` or `fp16` for `device`.

        Args:
            several: several optimizers may step in one update, whose end is `end_update`.
        """
        self._several = several
        self._device = device.type
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self._rounds = name == "tf32"
        self._scales = name == "fp16"
        self.reset()

    def reset(self) -> None:
        """Starts with the first loss scale again, whatever an update that failed has left."""
        self.scaler: torch.amp.GradScaler | None = (
            torch.amp.GradScaler(self._device) if self._scales else None
        )
        self._scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        self._growth = 0
        self._is_unscaled = self._has_stepped = self._is_too_high = False
        self._is_known = True

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before its backward pass; None where it is not scaled."""
        return None if self.scaler is None else self._scale

    def context(self) -> contextlib.AbstractContextManager[object]:
        """Returns what computes in this arithmetic while it is entered."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, self._dtype)

    @contextlib.contextmanager
    def setting(self) -> Iterator[None]:
        """While it is open, torch multiplies matrices of float32 as this arithmetic says."""
        before = torch.get_float32_matmul_precision()
        if self._rounds:
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            if self._rounds:
                torch.set_float32_matmul_precision(before)

    @property
    def divisor(self) -> int:
        """What `backward` divides a loss by that it is not told to divide."""
        return 1

    @property
    def is_full(self) -> bool:
        """Whether the arithmetic is that of the weights, so that nothing is wrapped."""
        return self._dtype is None

    def wrap(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Returns `forward` in this arithmetic; itself where there is nothing to do."""
        if self._dtype is None:
            return forward
        return cast("Callable[..., Tensor]", torch.autocast(self._device, self._dtype)(forward))

    def backward(
        self, loss: Tensor, steps: int = 1, inputs: Sequence[Tensor] | None = None
    ) -> None:
        """Backward pass of the scaled loss.

        Args:
            steps: micro-batches of an update, by which it is divided.
            inputs: what alone gets gradients; None: everything that the loss depends on.
        """
        part = loss if steps == 1 else loss / steps
        if self.scaler is not None:
            part = self.scaler.scale(part)
        part.backward(inputs=inputs)  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer, others: Iterable[Tensor]) -> None:
        """Makes the gradients of the optimizer's parameters, and of `others`, those of the unscaled
        loss.
        """
        if self.scaler is not None:
            self._is_unscaled = True
            self._unscale(optimizer, self.scaler)
            for parameter in others:
                if parameter.grad is not None:
                    parameter.grad.mul_(1.0 / self._scale)

    def _unscale(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        scaler.unscale_(optimizer)

    @property
    def is_searching(self) -> bool:
        """Whether a gradient that is not finite may be due to the loss scale, which can fall."""
        return self.scaler is not None and self._scale > _LEAST_SCALE

    def join(self, verdict: Tensor | float, optimizer: torch.optim.Optimizer) -> Tensor:
        """Returns `verdict` where the scaler has found the gradients finite as well, when they were
        unscaled; else NaN. It is on the device, so that both are read in one copy.
        """
        assert self.scaler is not None
        joined = torch.as_tensor(verdict)
        for found in self.scaler._found_inf_per_device(optimizer).values():
            joined = torch.where(found.to(joined.device, non_blocking=True) > 0, math.nan, joined)
        return joined

    def step(self, optimizer: torch.optim.Optimizer, *, is_checked: bool = False) -> bool:
        """Steps the optimizer; returns whether the scaler refused to (an infinite or NaN
        gradient).

        Args:
            is_checked: its gradients are known to be finite, so that the scaler need not look.
        """
        if self.scaler is None:
            optimizer.step()
            return False
        if is_checked:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self._is_known = False
        self._has_stepped = True
        return not self._several and self.end_update()

    def skip(self, *, overflow: bool = False) -> None:
        """Leaves out the step of an optimizer whose gradients were unscaled.

        Args:
            overflow: they are not finite, and the scale may be to blame: it falls, as
                `GradScaler.update` lets it fall where it has found that out, for not all gradients
                are the optimizer's, or of this process.
        """
        self._is_too_high = self._is_too_high or overflow
        self._is_known = self._is_known and overflow
        if not self._several:
            self.end_update()

    def drop(self) -> None:
        """Leaves out an update that was dropped, whose gradients may be unscaled already."""
        if self.scaler is not None and self._is_unscaled:
            self.scaler.update(self._scale)
        self._is_unscaled = self._has_stepped = self._is_too_high = False

    def end_update(self) -> bool:
        """Lets the scale follow what this update has met; returns whether it has fallen."""
        if self.scaler is None or not self._is_unscaled:
            return False
        before = self._scale
        if self._is_too_high:
            self._scale *= self.scaler.get_backoff_factor()
            self.scaler.update(self._scale)
            self.scaler.load_state_dict({**self._settings(self.scaler), "_growth_tracker": 0})
            self._growth = 0
        elif self._has_stepped:
            self.scaler.update()
            self._follow(self.scaler)
        else:
            self.scaler.update(self._scale)
        self._is_unscaled = self._has_stepped = self._is_too_high = False
        self._is_known = True
        return self._scale < before

    def _follow(self, scaler: torch.amp.GradScaler) -> None:
        """Takes the scale from its device where it may have changed: where the scaler has looked
        at the gradients, or has grown after so many updates without an overflow.
        """
        self._growth += 1
        if self._growth >= scaler.get_growth_interval() or not self._is_known:
            self._scale = scaler.get_scale()
            self._growth = scaler._get_growth_tracker()

    def _settings(self, scaler: torch.amp.GradScaler) -> dict[str, Any]:
        """Returns what `state_dict` does, but for the count, without reading from the device."""
        return {
            "scale": self._scale,
            "growth_factor": scaler.get_growth_factor(),
            "backoff_factor": scaler.get_backoff_factor(),
            "growth_interval": scaler.get_growth_interval(),
        }

    def state(self) -> dict[str, Any] | None:
        """Returns the scaler's state, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from the scaler of a snapshot; a run that had none starts with a fresh one."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))
            self._scale = self.scaler.get_scale()
            self._growth = self.scaler._get_growth_tracker()


def wrap_modules(called: Any, precision: Precision) -> Any:
    """Returns what to call in place of a module, or of a mapping of them, so that it computes in
    `precision`.
    """
    if precision.is_full:
        return called
    if isinstance(called, Mapping):
        return {name: _InPrecision(each, precision) for name, each in called.items()}
    return _InPrecision(called, precision)


class _InPrecision:
    """A module that is called in a run's precision; for the rest it is the module itself."""

    def __init__(self, module: Any, precision: Precision) -> None:
        self._module, self._context = module, precision.context

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls the module."""
        with self._context():
            return self._module(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
