"""The callback: when to average, and when the averages stand in the model."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl, option_text
from trainer_callback.checks import option_error
from trainer_callback.values import check_types

from .average import WeightAverage

if TYPE_CHECKING:
    import torch

__all__ = ["EMACallback"]

logger: Final = logging.getLogger("trainer.ema")

_PREFIX: Final = "ema_"

_refuse = partial(option_error, "EMACallback", _PREFIX)


@dataclass
class _Other:
    """An optimizer beside the first one: its parameters, and its updates so far."""

    names: list[str]
    updates: int = 0


class EMACallback(TrainerCallback):
    """Keeps an exponential moving average of the weights, which often validates better than they.

    After each update: average = decay * average + (1 - decay) * weights. The decay is warmed up:
    over the first updates it is lower, or a short run would end in an average of its first weights.
    The weights that are
    trained are not changed: a run with it trains the same ones, bit by bit, as a run without.

    Of several optimizers each has the updates of its own parameters counted and averaged; whatever
    no other has is averaged with the first one's.

    With early stopping, the weights that it keeps as the best are those that were validated, so
    averages, and it has the last word at the end of the run.

    Args:
        decay: share of the old average in the new one, from 0 to below 1
        warmup: let the n-th averaging have a decay of (1 + n) / (10 + n), up to `decay`
        start_step: updates before the average starts as a copy of the weights
        every: average once in so many updates; skipped updates do not count
        use_buffers: average floating-point buffers too, such as the statistics of batch
            normalisation
        use_for_validation: validate the average instead of the weights
        swap_at_end: the finished model has the average; the snapshots keep the weights beside it
    """

    # at the end it puts its best weights over the last average
    before: tuple[str, ...] = ("early_stopping",)
    needs_every_update = True
    logs_metrics: tuple[str, ...] | None = ()

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = True,
        start_step: int = 0,
        every: int = 1,
        use_buffers: bool = False,
        use_for_validation: bool = True,
        swap_at_end: bool = True,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(EMACallback, locals(), _PREFIX)
        if not 0 <= decay < 1:
            raise _refuse("decay", "from 0 to below 1", decay, use=0.999)
        if start_step < 0:
            raise _refuse("start_step", "at least 0", start_step, use=0, effect="to start at once")
        if every < 1:
            raise _refuse("every", "at least 1", every, use=1, effect="for each update")
        self.decay = decay
        self.warmup = warmup
        self.start_step = start_step
        self.every = every
        self.use_buffers = use_buffers
        self.use_for_validation = use_for_validation
        self.swap_at_end = swap_at_end
        self.restores_weights: bool = swap_at_end
        self.updates: int = 0
        self._first: object = None
        self._others: dict[str, _Other] = {}
        self._keys: dict[object, str] = {}
        self._average: WeightAverage | None = None
        self._is_short = self._is_validated = False

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._start(trainer)
        if state is not None and self._average is not None:
            self.updates = state["updates"]
            others = state.get("others", {})
            self._others = {key: _Other(**other) for key, other in others.items()}
            self._average.load(state["averages"])

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self._start(trainer)
        self._is_validated = validates = self.use_for_validation and trainer.has_validation
        steps = trainer.max_steps
        self._is_short = steps is not None and steps - self.start_step <= self.every
        if self._is_short and steps == 1:
            logger.warning("a run of 1 updates is too short for an average: its weights stay.")
        elif self._is_short:
            logger.warning(
                "start_step %d and every %d cannot average anything in a run of %d updates. Use "
                "lower ones (%s, %s).",
                self.start_step,
                self.every,
                steps,
                option_text("start_step", prefix=_PREFIX),
                option_text("every", prefix=_PREFIX),
            )
        elif not (validates or self.swap_at_end):
            logger.warning(
                "nothing uses the average but the snapshots: neither a validation nor the finished "
                "model. Use %s with a validation set, or %s.",
                option_text("use_for_validation", True, _PREFIX),
                option_text("swap_at_end", True, _PREFIX),
            )
        elif validates:
            logger.info("validates the average of the weights once it has started.")

    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        if skipped or self._average is None or trainer.step <= self.start_step:
            return
        if trainer.optimizer is not self._first:
            self._follow_other(self._average, trainer.optimizer)
            return
        if self.updates % self.every == 0:
            others = {name for other in self._others.values() for name in other.names}
            self._average.update(self._find_decay(self.updates), lambda name: name not in others)
        self.updates += 1

    @hookimpl(tryfirst=True)
    def on_validation_start(self, trainer: TrainerProtocol) -> None:
        if self.use_for_validation and self._average is not None:
            self._share_buffers(trainer, self._average)
            self._average.swap_in()

    @hookimpl(wrapper=True)
    def on_validation_end(  # type: ignore[override]  # a wrapper: yields to all other callbacks
        self,
    ) -> Generator[None, object, object]:
        """All others find the weights that were validated; some keep them as the best."""
        try:
            return (yield)
        finally:
            self._swap_out()

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        if self._average is None:
            return {"updates": self.updates, "averages": {}}
        self._average.repair_nonfinite()
        averages = dict(sorted(self._average.averages.items()))  # a resume begins them in one order
        state = {"updates": self.updates, "averages": averages}
        others = {key: asdict(other) for key, other in self._others.items()}
        return {**state, "others": others} if others else state

    def on_exception(self, trainer: TrainerProtocol, exception: BaseException) -> None:
        self._swap_out()  # the exception may have come out of a validation

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if not self.swap_at_end or result.status not in ("finished", "stopped"):
            return
        if self._average is None or self.updates <= self.every:  # a copy of what were the weights
            if self._is_short:  # as was said at the start
                return
            logger.warning(
                "%d updates were too few for an average: the last weights stay. Use a lower %s or "
                "%s.",
                trainer.step,
                option_text("start_step", prefix=_PREFIX),
                option_text("every", prefix=_PREFIX),
            )
            return
        for other in self._others.values():
            if other.updates <= self.every:
                self._average.forget(other.names)
        self._share_buffers(trainer, self._average)
        self._average.copy_in()
        if hasattr(trainer, "note_weights"):
            validated = trainer.step if self._is_validated else None
            trainer.note_weights(f"the average over {self.updates} updates", step=validated)
        logger.info("the model has the average over %d updates now.", self.updates)

    def _find_decay(self, updates: int) -> float:
        """As TensorFlow's `ExponentialMovingAverage(num_updates=n)` warms it up."""
        done = updates // self.every
        return min(self.decay, (1 + done) / (10 + done)) if self.warmup else self.decay

    def _follow_other(self, average: WeightAverage, optimizer: torch.optim.Optimizer) -> None:
        """Averages what an optimizer has that is not the first one."""
        key = self._keys.get(optimizer)
        if key is None:
            names = average.find_own(optimizer)
            key = self._keys[optimizer] = names[0]
            if key not in self._others:
                self._others[key] = _Other(names)
                average.forget(names)  # averaged with the first one's before this was known
        other = self._others[key]
        if other.updates % self.every == 0:
            other.names = average.find_own(optimizer)
            own = {*other.names}
            average.update(self._find_decay(other.updates), lambda name: name in own)
        other.updates += 1

    def _start(self, trainer: TrainerProtocol) -> None:
        self.updates, self._first, self._others, self._keys = 0, trainer.optimizer, {}, {}
        self._average = WeightAverage(trainer.model, use_buffers=self.use_buffers)

    def _share_buffers(self, trainer: TrainerProtocol, average: WeightAverage) -> None:
        if self.use_buffers and average.averages and trainer.world_size > 1:
            trainer.total({"averages": len(average.averages)})  # no broadcast before all are here
            average.share_buffers()

    def _swap_out(self) -> None:
        if self._average is not None:
            self._average.swap_out()
