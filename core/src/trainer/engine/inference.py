"""What a `Trainer` finds in a set, and makes of it, before and behind a run. Nothing of it is left:
no hook is called, and random numbers, modes, gradients and the position stay what they are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from trainer_callback import RunError, option_text
from trainer_callback.checks import takes
from trainer_callback.errors import show

from ..config import ConfigError
from ..data.batches import move_to_device, to_host
from ..data.joining import join
from ..data.loader_check import check_order
from ..data.loaders import EmptyLoaderError, EpochLoader
from ..processes.sharding import reshard
from ..step.advice import add_note, advise
from ..step.answers import read_outputs
from ..step.losses import apply_model
from ..step.metrics import check_name
from ..step.validation import agree_on_metrics, go_together, without_trace
from .assembly import Setup
from .call_order import RunOrderError
from .measure import Measure
from .memory import explaining
from .run_loaders import RunLoaders

__all__ = ["Inference"]

logger: logging.Logger = logging.getLogger("trainer")

_WAY: Final = "predict_fn=lambda model, batch: model(batch)"


class Inference:
    """Goes through sets outside a run. Of several processes all have to call its methods."""

    def __init__(
        self,
        setup: Setup,
        measure: Measure,
        *,
        loss_fn: Callable[..., Any] | None,
        batch_size: Callable[[Any], int] | None,
    ) -> None:
        """Keeps references.

        Args:
            measure: what is measured in each set.
            loss_fn: whose outputs are collected; None: those of the model.
            batch_size: batch -> number of its items, or None.
        """
        self._setup, self._measure = setup, measure
        self._loss_fn, self._batch_size = loss_fn, batch_size
        self._ranks, self._device = setup.ranks, setup.view.device

    def evaluate(self, loader: Iterable[Any], name: str) -> dict[str, float]:
        """Returns the mean loss and the metrics over a set, as `NAME_loss` and so on.

        Raises:
            ConfigError: it is no loader, or the name is none.
            RunOrderError: inside a run.
        """
        check_name("set", name)
        with self._outside("evaluate", "pass the set as val_loader"):
            measured = self._measure.take(self._wrap(loader, name), name)
            with self._evaluating():
                found = self._measure.over(measured, is_cut=_is_never)
            named = {f"{name}_{key}": value for key, value in found.items()}
            return agree_on_metrics(named, self._ranks)

    def predict(
        self, loader: Iterable[Any], function: Callable[..., Any] | None, *, everywhere: bool
    ) -> Any:
        """Returns the outputs for a set, on the CPU, in the order of the data.

        Args:
            function: `(model, batch)` -> outputs; None: those of the loss function.
            everywhere: in all processes, and not in the main one alone.

        Raises:
            ConfigError: it is no loader, or one without an order; or there are no outputs.
            RunOrderError: inside a run.
        """
        if function is not None and not takes(function, 2):
            raise ConfigError(
                f"predict_fn must be a function (model, batch) -> outputs, got {show(function)}. "
                f"Write {_WAY}."
            )
        gather = self._ranks.gather if everywhere else self._ranks.gather_on_main
        with self._outside("predict", "ask for `outputs` in on_validation_batch_end"):
            wrapped = self._wrap(loader, "predict")
            check_order(wrapped.given)
            found: list[Any] = []
            with self._evaluating():
                for own in self._go_through(wrapped, function):
                    found += [each for each in gather(own, "outputs") if each is not None]
            if not self._ranks.highest(bool(found), "outputs"):
                raise EmptyLoaderError("the predict loader gave no batch to any process.")
        return self._join(found, is_default=function is None) if found else None

    def _wrap(self, loader: Iterable[Any], name: str) -> EpochLoader:
        return RunLoaders(self._setup).wrap_once(loader, name)

    @contextlib.contextmanager
    def _outside(self, call: str, way: str) -> Iterator[None]:
        """Refuses a call inside a run; one that fails is told to the other processes."""
        if self._setup.session.is_open:
            raise RunOrderError(
                f"trainer.{call} is called inside a run, whose callbacks and random numbers it "
                f"knows nothing of. Call it before or after train(); inside, {way}."
            )
        advice = (
            "Use smaller batches, or a smaller model; a run computes in less with "
            f"{option_text('precision', 'bf16')}."
        )
        with explaining(f"in trainer.{call}", advice), self._ranks.run():
            try:
                self._ranks.meet(f"trainer.{call}", by_callback=True)
            except RunError:
                raise
            except RuntimeError as error:  # of the connection
                raise RunError(
                    f"nobody comes to trainer.{call}: another process has ended. Call it in all "
                    "processes, also where one alone uses what it returns."
                ) from error
            yield

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model computes as in a validation, and nothing of that is left."""
        setup = self._setup
        setup.prepare_evaluation()
        with without_trace(setup.modes, self._device):
            with torch.no_grad(), setup.precision.context():
                yield
            reshard(setup.fsdp_modules)

    def _go_through(
        self, loader: EpochLoader, function: Callable[..., Any] | None
    ) -> Iterator[tuple[Any, int | None] | None]:
        """Yields the outputs for each batch on the CPU, and the number of its items where that is
        known; None where this process has no batch any more.
        """
        chosen = self._call_loss_fn if function is None else function
        call = self._setup.precision.wrap(partial(chosen, self._setup.evaluated))
        index = 0

        def predict(batch: Any) -> Any:
            return call(move_to_device(batch, self._device))

        for item in go_together(loader, "predict", is_cut=_is_never, keep_up=predict):
            if item is None:
                yield None
                continue
            count = self._batch_size
            size = loader.promised_size(index) if count is None else count(item[0])
            try:
                outputs = to_host(predict(item[0]))
            except Exception as error:
                raise advise(error, None, item[0])  # noqa: B904 - it is the same
            if outputs is None:
                what = "loss_fn has answered a loss alone" if function is None else "there are none"
                raise ConfigError(
                    f"predict collects outputs, and {what}. Return (loss, outputs) from loss_fn, "
                    f"or pass trainer.predict(loader, {_WAY}[0])."
                )
            index += 1
            yield outputs, size

    def _call_loss_fn(self, model: Any, batch: Any) -> Any:
        """Returns the outputs that the loss function, or without one the model, has for a batch."""
        try:
            if self._loss_fn is not None:
                return read_outputs(self._loss_fn(model, batch))
            output = apply_model(model, batch)
        except Exception as error:
            called = "loss_fn" if self._loss_fn is not None else "the model with its batch"
            hint = (
                f"predict calls {called}. Where the data has no targets, or more than the model "
                f"takes, pass trainer.predict(loader, {_WAY})."
            )
            logger.error("%s: %s. %s", type(error).__name__, str(error), hint)
            add_note(error, hint)
            raise
        if isinstance(output, Tensor):
            return output if output.ndim else None
        return read_outputs(output) if hasattr(output, "loss") else output

    def _join(self, found: list[tuple[Any, int | None]], *, is_default: bool) -> Any:
        odd: list[str] = []

        def note(tensor: Tensor, size: int) -> None:
            odd.append(f"shape {tuple(tensor.shape)} for a batch of {size} items")

        joined = join([outputs for outputs, _ in found], [size for _, size in found], note)
        if odd:
            wrong = f"If loss_fn is not made for such a batch, pass {_WAY}. " if is_default else ""
            logger.warning(
                "predict: outputs have the %s, and no row for each item, so they come as a list "
                "with one for each batch. %sIf a batch has another number of items, pass "
                "Trainer(..., batch_size=lambda batch: ...).",
                *(odd[0], wrong),
            )
        return joined


def _is_never() -> bool:
    """Whether a signal cuts it short: outside a run it ends the process, as any other."""
    return False
