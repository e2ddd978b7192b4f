"""The sets of a host's validation, of which it tells batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .view import HostedView

__all__ = ["HostedSets"]

logger: logging.Logger = logging.getLogger("trainer")


class HostedSets:
    """The set under way, between `HostedRun.start_validation` and `end_validation`.

    Attributes:
        remedy: what people can do where the host has no batches to tell of.
    """

    def __init__(self, view: HostedView) -> None:
        """Keeps references."""
        self._view, self._hook = view, view.manager.hook
        self._name: str | None = None
        self._batches = 0
        self._has_warned = False
        self.remedy: str = ""

    @property
    def asks_batches(self) -> bool:
        """Whether a callback wants the batches."""
        return "on_validation_batch_end" in self._view.manager.used

    def start(self, name: str) -> None:
        """A set begins, called `val` if it is alone; the one before it is over."""
        self.end({})
        self._name, self._batches = name, 0
        self._hook.on_validation_set_start(trainer=self._view, name=name)

    def end_batch(self, batch: Any, loss: Tensor, outputs: Any) -> None:
        """A batch is done.

        Args:
            batch: on the device of the model.
            loss: its mean over the items; 0-dim.
            outputs: what the model has answered.
        """
        number, self._batches = self._batches, self._batches + 1
        if not self.asks_batches or self._name is None:
            return
        ranks = self._view.ranks
        ranks.is_in_update = True  # other processes may have more batches, or fewer
        try:
            self._hook.on_validation_batch_end(
                trainer=self._view,
                name=self._name,
                batch_idx=number,
                batch=batch,
                loss=loss.detach(),
                outputs=outputs,
            )
        finally:
            ranks.is_in_update = False

    def end(self, metrics: Mapping[str, float]) -> None:
        """A set is over, if one is under way.

        Args:
            metrics: that were found in it, as `val_NAME`, as far as they are known already.
        """
        name, self._name = self._name, None
        if name is not None:
            self._warn(name)
            found = {each.removeprefix("val_"): float(value) for each, value in metrics.items()}
            self._hook.on_validation_set_end(trainer=self._view, name=name, metrics=found)

    def _warn(self, name: str) -> None:
        """Says once that somebody waits for batches that do not come."""
        if self.asks_batches and not self._batches and not self._has_warned:
            self._has_warned = True
            names = self._view.manager.implementers("on_validation_batch_end")
            logger.warning(
                "%s shows no batches of the validation set %r, which %s would look at. %s",
                *(self._view.host, name, " and ".join(sorted(names)), self.remedy),
            )
