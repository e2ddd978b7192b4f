"""Metrics of a validation: functions of values per item, and objects with `update`, `compute` and
`reset`, such as those of torchmetrics. Knows no loader and no loop.

Letters: B items of a batch, W processes.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer_callback import RunError, UsageError
from trainer_callback.checks import takes
from trainer_callback.errors import show

from ..config import ConfigError
from ..data.batches import count_writes
from ..processes.ranks import Ranks
from .advice import add_note, describe_batch
from .answers import Loss, read_answer
from .losses import LossError, check_count
from .means import Mean, MeanLoss, read_numbers
from .merging import is_torchmetric, keeps_predictions, merge_torchmetrics
from .metric_check import check_metric

__all__ = ["MetricError", "MetricSet", "Metrics", "check_name", "name_values"]

logger: logging.Logger = logging.getLogger("trainer")

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


class MetricError(ConfigError, TypeError):
    """What a metric was given, or has answered, is of no use."""


class Metrics:
    """The metrics of a run: checked once, and copied for each set of each validation."""

    def __init__(
        self,
        given: Mapping[str, Any] | None,
        inputs: Callable[[Any, Any], Any] | None,
        ranks: Ranks,
    ) -> None:
        """Checks them; all processes have to call this.

        Args:
            given: name -> a function `(outputs, batch)`, or an object.
            inputs: `(outputs, batch)` -> the arguments of the objects' `update`: a tuple of them,
                or a mapping of those by name.

        Raises:
            ConfigError: something that is no metric; other names in another process.
        """
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"metrics must be a mapping of names to metrics, got {show(given)}. Write "
                '{"accuracy": lambda outputs, batch: outputs.argmax(1) == batch[1]}.'
            )
        if inputs is not None and not takes(inputs, 2):
            raise ConfigError(
                f"metric_inputs must be a function (outputs, batch), got {show(inputs)}. Write "
                'lambda outputs, batch: (outputs, batch["labels"]).'
            )
        self._given, self._inputs, self._ranks = dict(given or {}), inputs, ranks
        for name, metric in self._given.items():
            check_name("metric", name, "loss")
            check_metric(name, metric, ranks)
            if is_torchmetric(metric) and keeps_predictions(metric):
                logger.info("metric %r keeps all predictions of a validation set in memory.", name)
        if inputs is not None and not any(hasattr(each, "update") for each in self._given.values()):
            raise ConfigError(
                "metric_inputs has no effect: no metric is an object with update. A function is "
                "called with (outputs, batch). Leave metric_inputs out."
            )
        everywhere = ranks.gather([*self._given], "metrics")
        if any(names != everywhere[0] for names in everywhere):
            raise ConfigError(
                f"the processes have other metrics: {everywhere}. Give the same in all of them."
            )

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._given)

    @property
    def names(self) -> list[str]:
        """Their names, and `NAME_*` for objects, which may answer several numbers."""
        several = [f"{name}_*" for name, each in self._given.items() if hasattr(each, "update")]
        return [*self._given, *several]

    def check_answer(self, answer: Any) -> None:
        """Looks whether a loss function answers what they are computed from.

        Raises:
            LossError: there is no loss in it; MetricError: there are no outputs beside it.
        """
        _check_outputs(read_answer(answer)[1], self._given)

    def start(self, device: torch.device) -> MetricSet:
        """Returns them for one set of a validation, with nothing in them yet."""
        own: dict[str, _Values | _Object] = {}
        for name, metric in self._given.items():
            is_object = hasattr(metric, "update")
            own[name] = (
                _Object(name, metric, self._inputs, device)
                if is_object
                else _Values(name, metric, device)
            )
        return MetricSet(own, self._ranks, device)


class MetricSet:
    """The metrics of one set, in one validation."""

    def __init__(
        self, metrics: Mapping[str, _Values | _Object], ranks: Ranks, device: torch.device
    ) -> None:
        """Keeps references."""
        self._metrics, self._ranks, self._device = metrics, ranks, device

    def update(self, outputs: Any, batch: Any, size: int | None) -> None:
        """Takes a batch of B = `size` items; None: not known.

        Raises:
            MetricError: there are no outputs, or a metric cannot use them.
        """
        if not self._metrics:
            return
        _check_outputs(outputs, self._metrics)
        with torch.autocast(self._device.type, enabled=False):
            given = count_writes((outputs, batch))
            for name, metric in self._metrics.items():
                try:
                    metric.update(outputs, batch, size)
                except Exception as error:
                    raise _advise(error, name, outputs, batch)  # noqa: B904 - it is the same
                if given != count_writes((outputs, batch)):
                    raise MetricError(
                        f"metric {name!r} has changed its outputs or batch in place, which other "
                        "metrics and the next validation would read. Change a copy: "
                        "outputs.clone()."
                    )

    def compute(self, loss: MeanLoss) -> dict[str, float]:
        """Returns the mean loss and the values over all processes, by name; all of them have to
        call this. What is on the device is read in one copy.

        Raises:
            EmptyLoaderError: there was no batch, or no item.
            LossError: some losses are a `Loss`, and others a mean.
            MetricError: a metric answers no numbers, or has seen no item.
        """
        found: dict[str, float | Tensor | Mean] = {"loss": loss.mean}
        for name, metric in self._metrics.items():
            try:
                answered = metric.compute(self._ranks)
            except Exception as error:
                raise _advise(error, name)  # noqa: B904 - it is the same
            for key, value in answered.items():
                if key in found:
                    raise MetricError(f"two metrics have the name {key!r}. Rename {name!r}.")
                found[key] = value
        means = {name: each for name, each in found.items() if isinstance(each, Mean)}
        others = {name: each for name, each in found.items() if not isinstance(each, Mean)}
        sums = [number for each in means.values() for number in (each.total, each.count)]
        read = read_numbers([*sums, *others.values()])
        own = [*read[: len(sums)], *loss.counts]
        *totals, batches, with_sums = self._ranks.total(own, "end of a validation")
        values = dict(zip(others, read[len(sums) :], strict=True))
        pairs = zip(totals[::2], totals[1::2], strict=True)
        for name, (total, count) in zip(means, pairs, strict=True):
            if name == "loss":
                values[name] = loss.finish(total, count, batches, with_sums)
            else:
                values[name] = _divide(name, total, count)
        return {name: values[name] for name in found}


def _divide(name: str, total: float, count: float) -> float:
    if not count >= 0:
        raise MetricError(f"metric {name!r} counted items below 0, or NaN. Return mask.sum().")
    if not count:
        raise MetricError(f"metric {name!r} has no item in the whole set. Look what it leaves out.")
    return total / count


class _Values:
    """The mean of a function's values per item."""

    def __init__(self, name: str, function: Callable[..., Any], device: torch.device) -> None:
        self._name, self._function = name, function
        self.mean: Mean = Mean(device)

    def update(self, outputs: Any, batch: Any, size: int | None) -> None:
        answer = self._function(outputs, batch)
        pair = (answer.total, answer.count) if isinstance(answer, Loss) else answer
        if isinstance(pair, tuple) and len(pair) == 2 and _is_sum(*pair):
            self.mean.add(torch.as_tensor(pair[0]), pair[1])
            return
        is_right = isinstance(answer, Tensor) and answer.ndim == 1 and not answer.is_complex()
        if not is_right or (size is not None and len(answer) != size):
            what = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else show(answer)
            items = "one value per item" if size is None else f"one value per item, shape ({size},)"
            raise MetricError(
                f"metric {self._name!r} answered {what} for a batch, and not {items}. Return "
                "outputs.argmax(1) == batch[1], without a mean; or, of masked values, (total, "
                "count). How many items a batch has is Trainer(..., batch_size=...)."
            )
        self.mean.add(answer.detach().to(self.mean.total.dtype).sum(), len(answer))

    def compute(self, _: Ranks) -> dict[str, Mean]:
        return {self._name: self.mean}


class _Object:
    """A private copy of an object with `update`, `compute` and `reset`."""

    def __init__(
        self,
        name: str,
        metric: Any,
        inputs: Callable[[Any, Any], Any] | None,
        device: torch.device,
    ) -> None:
        self._name, self._inputs = name, inputs
        self._metric = copy.deepcopy(metric)
        self._metric.reset()
        if isinstance(self._metric, nn.Module):
            self._metric.to(device)

    def update(self, outputs: Any, batch: Any, size: int | None) -> None:
        if self._inputs is not None:
            given = self._inputs(outputs, batch)
        elif isinstance(outputs, Tensor) and isinstance(batch, (tuple, list)) and len(batch) == 2:
            given = (outputs, batch[1])
        else:
            raise MetricError(
                f"metric {self._name!r} needs predictions and targets, and what they are in "
                f"{_kind(outputs)} and {_kind(batch)} is not known. Pass metric_inputs=lambda "
                'outputs, batch: (outputs["logits"], batch["labels"]).'
            )
        if isinstance(given, Mapping):
            self._metric.update(**given)
        elif isinstance(given, (tuple, list)):
            self._metric.update(*given)
        else:
            raise MetricError(
                f"metric_inputs answered {_kind(given)}. Return a tuple of the arguments of "
                "update, such as (predictions, targets), or a dict of them by name."
            )

    def compute(self, ranks: Ranks) -> dict[str, float | Tensor]:
        metric = self._metric
        if is_torchmetric(metric):
            metric = merge_torchmetrics(metric, ranks)
        elif not ranks.is_alone:
            metric, *others = ranks.gather(metric, f"metric {self._name}")
            metric.merge(others)
        return name_values(self._name, metric.compute())


def name_values(name: str, value: Any) -> dict[str, float | Tensor]:
    """Returns numbers by their names: of a mapping `NAME_KEY`, of a vector `NAME_0` and so on.
    Tensors stay on their device, 0-dim.

    Raises:
        MetricError: there is something else in it.
    """
    if isinstance(value, Mapping):
        pairs = [(f"{name}_{key}", each) for key, each in value.items()]
    elif isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1:
        pairs = [(f"{name}_{place}", each) for place, each in enumerate(value)]
    elif isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        return {name: value}
    else:
        try:
            return {name: float(value)}
        except Exception as error:
            raise MetricError(
                f"metric {name!r} answered {_kind(value)}, which is no number, no mapping of them "
                "and no vector. Leave it out, or reduce it."
            ) from error
    if not pairs:
        raise MetricError(
            f"metric {name!r} answered {show(value)}, without a number. Leave it out."
        )
    return {key: number for key, each in pairs for key, number in name_values(key, each).items()}


def check_name(kind: str, name: object, taken: str = "") -> None:
    """Refuses a name that is none, or that means something else already.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == taken:
        rest = f", and {taken!r} is taken" if taken else ""
        raise ConfigError(
            f"{show(name)} is no name of a {kind}: letters, digits, '_', '.' and '-' are{rest}. "
            "Give it another name."
        )


def _check_outputs(outputs: Any, names: Iterable[str]) -> None:
    if outputs is None:
        raise MetricError(
            f"metrics are computed from outputs, and loss_fn has answered a loss alone. Return "
            f"(loss, outputs) from it, for {', '.join(names)}."
        )


def _is_sum(total: object, count: object) -> bool:
    """Whether the two are the total and the count of masked values."""
    try:
        check_count(count)
    except LossError:
        return False
    is_tensor = isinstance(total, Tensor) and not total.ndim and not total.is_complex()
    return is_tensor or (isinstance(total, (int, float)) and not isinstance(total, bool))


def _advise(error: Exception, name: str, *given: Any) -> Exception:
    """Returns `error`, raised by a metric, with a note on which, and what it was given."""
    if not isinstance(error, (UsageError, RunError)):
        of = f" with {' and '.join(map(describe_batch, given))}" if given else ""
        add_note(error, f"It is from metric {name!r}{of}.")
    return error


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
