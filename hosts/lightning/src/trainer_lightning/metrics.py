"""The metrics of a validation of Lightning's, by the names of a `trainer.Trainer`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from trainer.hosting import HostedView

__all__ = ["ValidationMetrics"]

logger: logging.Logger = logging.getLogger("trainer")

_PREFIX: Final = re.compile(r"^(validation|valid|val|eval)[/_.-]")


class ValidationMetrics:
    """What the module has logged in a validation: new in the trainer's metrics since its start.

    Attributes:
        val_loss: the module's name of what plugins know as `val_loss`; None: it is called so, or
            "val/loss", "valid_loss" and the like.
    """

    def __init__(self, val_loss: str | None) -> None:
        self.val_loss = val_loss
        self._known: dict[str, Tensor] = {}
        self._has_warned = False

    def start(self, trainer: Any) -> None:
        """A validation begins."""
        self._known = dict(trainer.callback_metrics)

    def read(self, trainer: Any, view: HostedView) -> dict[str, float]:
        """Returns what was found; means over the processes, which are the same in all of them."""
        found = {
            self._rename(name): value.item()
            for name, value in trainer.callback_metrics.items()
            if self._known.get(name) is not value
        }
        self._known = {}
        if "val_loss" not in found and not self._has_warned:
            self._has_warned = True
            names = ", ".join(found) or "nothing"
            logger.warning(
                "the module logs no validation loss for plugins, but %s. Log it as val_loss, or "
                'say which it is: Plugins(..., val_loss="valid/nll").',
                names,
            )
        if view.world_size > 1 and found:
            return _average(found, view)
        return found

    def _rename(self, name: str) -> str:
        if name == self.val_loss:
            return "val_loss"
        plain = _PREFIX.sub("", name, count=1)
        if self.val_loss is not None and plain == "loss":
            return name if name != "val_loss" else "val_other_loss"
        return f"val_{plain}"


def _average(found: Mapping[str, float], view: HostedView) -> dict[str, float]:
    return {name: each / view.world_size for name, each in view.total(found).items()}
