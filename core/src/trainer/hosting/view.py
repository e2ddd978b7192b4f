"""What callbacks see of a run that another trainer drives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer_callback import UsageError

from ..counters import Position
from ..view.view import View

__all__ = ["HostedView"]


class HostedView(View):
    """The `trainer` of every hook. What only the host knows it is told as attributes.

    Attributes:
        host: how messages call the host: "Hugging Face", "Lightning".
        batches_per_epoch: `train_batches`.
        total_steps: `max_steps`.
        is_saved_behind: whether the host saves a checkpoint behind the update of a position.
        read_loss_scale: `loss_scale`.
        pass_apart: epoch -> the batches of it, in an independent pass, on their device; None: the
            host has no such pass.
        puts_weights_back: what the host does at its end that puts other weights into the model, as
            its option is called; empty: nothing.
        is_ending: the hooks of the run's end are called.
    """

    __slots__ = (
        *("batches_per_epoch", "host", "is_ending", "is_saved_behind", "pass_apart"),
        *("puts_weights_back", "read_loss_scale", "total_steps"),
    )

    def __init__(self, *parts: Any, host: str, **named: Any) -> None:
        """Takes what `View` does; the attributes are those of a host that says nothing."""
        super().__init__(*parts, **named)
        self.host: str = host
        self.batches_per_epoch: int | None = None
        self.total_steps: int | None = None
        self.is_saved_behind: Callable[[Position], bool] = lambda position: False
        self.read_loss_scale: Callable[[], float | None] = lambda: None
        self.pass_apart: Callable[[int], Iterator[Any]] | None = None
        self.puts_weights_back: str = ""
        self.is_ending: bool = False

    @property
    def train_batches(self) -> int | None:
        return self.batches_per_epoch if self.has_epochs else None

    @property
    def max_steps(self) -> int | None:
        return self.total_steps

    @property
    def loss_scale(self) -> float | None:
        return self.read_loss_scale()

    @property
    def snapshot_due(self) -> bool:
        requested = self.snapshot_requested and self.ranks.is_alone
        return requested or self.is_saved_behind(self.position)

    def pass_over_training_data(self) -> Iterator[Any]:
        self.queue.check_thread()
        if self.pass_apart is None:
            raise UsageError(
                f"pass_over_training_data: {self.host} lends its training data to nobody beside "
                "its own loop. Use the callback that needs it in a trainer.Trainer."
            )
        return self.pass_apart(self.position.epoch)

    def compute_loss(self, batch: Any) -> Tensor:
        if self.loss_of is None:
            raise UsageError(
                f"compute_loss: {self.host} computes losses inside its own step only. Use the "
                "callback that needs it in a trainer.Trainer."
            )
        return super().compute_loss(batch)

    def hold_snapshot(self, path: str | Path) -> AbstractContextManager[Path]:
        raise UsageError(
            f"hold_snapshot: {self.host} removes its checkpoints itself, and asks nobody. Copy "
            "what is needed in on_snapshot_saved, and keep all checkpoints until that is done."
        )

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        if self.is_ending and self.puts_weights_back:
            raise UsageError(
                f"load_weights: {self.host} has put weights back itself ({self.puts_weights_back})"
                ". Use one of the two."
            )
        return super().load_weights(name, digest, fallback_step=fallback_step)
