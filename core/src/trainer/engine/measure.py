"""The mean loss and the metrics of a `Trainer` over one set, of which each process has a share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..data.batch_size import BatchSizes
from ..data.batches import move_to_device
from ..data.loader_check import check_undivided
from ..data.loaders import EpochLoader
from ..step.advice import advise
from ..step.answers import Loss, read_answer
from ..step.means import MeanLoss
from ..step.metrics import Metrics, MetricSet
from ..step.validation import go_together
from .answers import Answers
from .assembly import Setup

__all__ = ["Measure", "MeasuredSet", "Show"]

Show: TypeAlias = Callable[[int, Any, Any, Any], None]


@dataclass(frozen=True)
class MeasuredSet:
    """A set with the counter of its items.

    Attributes:
        name: how messages call it.
    """

    name: str
    loader: EpochLoader
    sizes: BatchSizes


class Measure:
    """Measures sets, one after the other."""

    def __init__(
        self,
        setup: Setup,
        loss_of: Callable[[Any], Any],
        *,
        metrics: Metrics,
        batch_size: Callable[[Any], int] | None,
        answers: Answers,
    ) -> None:
        """Keeps references.

        Args:
            setup: of the run.
            loss_of: batch on the device -> what a loss function answers.
            metrics: of each set.
            batch_size: batch -> number of its items, or None.
            answers: of the training; where its losses are sums, nobody has to count items.

        Raises:
            ConfigError: `batch_size` is no function.
        """
        BatchSizes(batch_size)  # which checks it
        self._loss_of, self._metrics, self._batch_size = loss_of, metrics, batch_size
        self._ranks, self._device = setup.ranks, setup.view.device
        self._answers = answers
        self._moves = self._device.type != "cpu" or self._ranks.is_sharded  # else as in training

    @property
    def names(self) -> list[str]:
        """The names of what is measured; `NAME_*` where a metric may answer several numbers."""
        return ["loss", *self._metrics.names]

    def take(self, loader: EpochLoader, name: str) -> MeasuredSet:
        """Returns `loader` as a set that can be measured again and again.

        Args:
            name: how messages call it.

        Raises:
            ConfigError: Accelerate has divided it, so that items may count twice.
        """
        if not self._ranks.is_alone:
            check_undivided(loader.given, name)
        return MeasuredSet(name, loader, BatchSizes(self._batch_size))

    def over(
        self, measured: MeasuredSet, *, is_cut: Callable[[], bool], show: Show | None = None
    ) -> dict[str, float]:
        """Returns `loss` and the metrics by their own names; all processes have to call it.

        Args:
            is_cut: whether to break off here; asked between batches.
            show: called behind each batch, with its number, itself, its loss and outputs.

        Raises:
            CutError: it was cut short: a mean over a part would look like a result.
            EmptyLoaderError: there was no batch, or not one for each process of a sharded model.
            LossError: what should be the loss of a batch is none.
            MetricError: a metric has no value.
        """
        seen = 0
        found = mean, metrics = MeanLoss(self._device), self._metrics.start(self._device)
        batches = go_together(
            measured.loader,
            measured.name,
            is_cut=is_cut,
            keep_up=lambda batch: self._loss_of(move_to_device(batch, self._device)),
        )
        for item in batches:
            if item is not None:
                self._add(measured, item[0], seen, found, show)
                seen += 1
        return metrics.compute(mean)

    def _add(
        self,
        measured: MeasuredSet,
        batch: Any,
        index: int,
        found: tuple[MeanLoss, MetricSet],
        show: Show | None,
    ) -> None:
        """Adds a batch to the mean loss and the metrics, and shows it."""
        size, (mean, metrics) = None, found
        if self._metrics or not self._answers.are_sums:
            size = measured.sizes.count(batch, measured.loader.promised_size(index))
        given = batch = move_to_device(batch, self._device) if self._moves else batch
        if (self._metrics or show) and isinstance(batch, (dict, list)):
            given = copy.copy(batch)  # a loss function may take things out of what it is given
        try:
            answer = self._loss_of(given)
        except Exception as error:
            raise advise(error, None, batch)  # noqa: B904 - it is the same
        loss, outputs = read_answer(answer)
        if size is None and not isinstance(loss, Loss):  # a validation may have means all the same
            size = measured.sizes.count(batch, measured.loader.promised_size(index))
        mean.add(loss, size)
        metrics.update(outputs, batch, size)
        if show is not None:
            show(index, batch, loss.mean if isinstance(loss, Loss) else loss.detach(), outputs)
