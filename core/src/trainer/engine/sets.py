"""The validation of a `Trainer`: the mean loss and the metrics over each of its sets, and the hooks
that surround a set.

Letters: B items of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ..data.batch_size import BatchSizes
from ..data.batches import move_to_device
from ..data.loaders import EmptyLoaderError, EpochLoader
from ..step.answers import Loss, read_answer
from ..step.means import MeanLoss
from ..step.metrics import Metrics, MetricSet
from ..step.validation import CutError
from .answers import Answers
from .assembly import Setup

__all__ = ["ONLY", "Sets"]

ONLY: Final = "val"
"""The name of a set that is alone."""


@dataclass(frozen=True)
class _Set:
    loader: EpochLoader
    sizes: BatchSizes


class Sets:
    """The validation sets of a run, of which each process has a share."""

    def __init__(
        self,
        setup: Setup,
        loaders: Mapping[str, EpochLoader],
        loss_of: Callable[[Any], Any],
        *,
        metrics: Metrics,
        batch_size: Callable[[Any], int] | None,
        answers: Answers,
    ) -> None:
        """Keeps references.

        Args:
            setup: of the run.
            loaders: set -> its batches; `ONLY` where its name is not to be seen.
            loss_of: batch on the device -> what a loss function answers.
            metrics: of each set.
            batch_size: batch -> B, or None.
            answers: of the training; where its losses are sums, nobody has to count items.
        """
        self._setup, self._loss_of, self._metrics = setup, loss_of, metrics
        self._view, self._ranks, self._device = setup.view, setup.ranks, setup.view.device
        self._callbacks, self._answers = setup.view.callbacks, answers
        self._sets = {name: _Set(each, BatchSizes(batch_size)) for name, each in loaders.items()}
        self._moves = self._device.type != "cpu" or self._ranks.is_sharded  # else as in training

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss` and other `val_NAME`; of several sets those of the first one, and all
        as `SET/NAME`.

        Raises:
            CutError: it was cut short: a mean over a part would look like a result.
            EmptyLoaderError: there was no batch, or not one for each process of a sharded model.
            LossError: what should be the loss of a batch is none.
            MetricError: a metric has no value.
        """
        found = {name: self._validate(name, each) for name, each in self._sets.items()}
        first = next(iter(found.values()))
        named = {f"val_{name}": value for name, value in first.items()}
        for name, values in found.items() if [*found] != [ONLY] else ():
            named.update({f"{name}/{key}": value for key, value in values.items()})
        return named

    def _validate(self, name: str, each: _Set) -> dict[str, float]:
        hook, view = self._callbacks.hook, self._view
        hook.on_validation_set_start(trainer=view, name=name)
        try:
            found = self._measure(name, each)
        except CutError:
            hook.on_validation_set_end(trainer=view, name=name, metrics={})
            raise
        hook.on_validation_set_end(trainer=view, name=name, metrics=found)
        return found

    def _measure(self, name: str, each: _Set) -> dict[str, float]:
        ranks, seen = self._ranks, 0
        found = mean, metrics = MeanLoss(self._device), self._metrics.start(self._device)
        batches = each.loader.iterate(epoch=0)
        item = next(batches, None)
        if ranks.is_sharded and ranks.highest(item is None, "validation"):
            raise EmptyLoaderError(
                f"the validation loader has no batch for one of {ranks.world_size} processes, and "
                "the model is sharded over all of them. Make its batches smaller."
            )
        batch: Any = None  # on the host: a loss function may take things out of what it is given
        while ranks.highest(item is not None, "validation batch"):  # shares may differ by a batch
            if self._setup.decider.is_signalled():
                raise CutError
            if item is not None:
                batch = item[0]
                self._take(name, batch, seen, found)
                seen += 1
                item = next(batches, None)
            elif ranks.is_sharded:  # whose forward pass takes all
                self._loss_of(move_to_device(batch, self._device))
        return {"loss": mean.finish(ranks), **metrics.compute()}

    def _take(self, name: str, batch: Any, index: int, found: tuple[MeanLoss, MetricSet]) -> None:
        """Takes a batch into the mean loss and the metrics, and hands it to the hook."""
        each, (mean, metrics) = self._sets[name], found
        size, used = None, "on_validation_batch_end" in self._callbacks.used
        if self._metrics or not self._answers.are_sums:
            size = each.sizes.count(batch, each.loader.promised_size(index))
        given = batch = move_to_device(batch, self._device) if self._moves else batch
        if (self._metrics or used) and isinstance(batch, (dict, list)):
            given = copy.copy(batch)
        loss, outputs = read_answer(self._loss_of(given))
        mean.add(loss, size)
        metrics.update(outputs, batch, size)
        if used:
            shown = loss.mean if isinstance(loss, Loss) else loss.detach()
            self._show(name, index, batch, shown, outputs)

    def _show(self, name: str, index: int, batch: Any, loss: Tensor, outputs: Any) -> None:
        """Calls the hook behind a batch, where no process may wait for another."""
        self._ranks.is_in_update = True
        try:
            self._callbacks.hook.on_validation_batch_end(
                trainer=self._view,
                name=name,
                batch_idx=index,
                batch=batch,
                loss=loss,
                outputs=outputs,
            )
        finally:
            self._ranks.is_in_update = False
