"""The callback: a range test before the first update, and what is made of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, ClassVar, Final, Literal

from trainer_callback import TrainerCallback, TrainerProtocol, UsageError, option_text
from trainer_callback.checks import is_positive, option_error
from trainer_callback.values import check_types

from .curve import Curve
from .trial import TrialOptimizer, no_trace

__all__ = ["LRFinderCallback"]

logger: Final = logging.getLogger("trainer.lr_finder")

_PREFIX: Final = "lr_finder_"

_refuse = partial(option_error, "LRFinderCallback", _PREFIX)

_NONE: Final = (
    "lr_finder: no rate is suggested, for the loss hardly falls between %.3g and %.3g. Try another "
    "range (%s, %s) or more steps; the run goes on as it was."
)


class LRFinderCallback(TrainerCallback):
    """Looks for a learning rate before the first update (Smith 2017, arXiv:1506.01186): trains some
    updates with a rate that rises exponentially, and looks where the loss falls. Weights, buffers,
    optimizer, scheduler, order of the data and random numbers are put back; a resumed run does
    not look again.

    Args:
        start: the lowest rate, of the first parameter group; other groups keep their proportions
        end: the highest rate
        steps: updates
        suggestion: the middle of the longest way down (valley), or where it is steepest
        smoothing: share of the running mean of the losses that stays at each of them
        stop_factor: stop where the smoothed loss is above so many times the lowest
        apply: train with the rate that is suggested
    """

    logs_metrics: tuple[str, ...] | None = ("lr_finder/*",)
    contract: ClassVar[Mapping[str, object]] = {"passive": True}

    def __init__(
        self,
        start: float = 1e-7,
        end: float = 10.0,
        *,
        steps: int = 100,
        suggestion: Literal["valley", "steepest"] = "valley",
        smoothing: float = 0.9,
        stop_factor: float = 4.0,
        apply: bool = False,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(LRFinderCallback, locals(), _PREFIX)
        if not is_positive(start):
            raise _refuse("start", "above 0", start, use=1e-7)
        if not start < end < math.inf:
            raise _refuse("end", f"above start, which is {start!r}", end, use=start * 1e6)
        if steps < 10:
            raise _refuse("steps", "at least 10", steps, use=100)
        if not 0 <= smoothing < 1:
            raise _refuse("smoothing", "from 0 to below 1", smoothing, use=0.9)
        if not stop_factor > 1:
            raise _refuse("stop_factor", "above 1", stop_factor, use=4.0)
        self.start = start
        self.end = end
        self.steps = steps
        self.suggestion = suggestion
        self.smoothing = smoothing
        self.stop_factor = stop_factor
        self.apply = apply

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if resumed:
            return
        with no_trace(trainer):
            curve = self._search(trainer)
        suggested = curve.suggest()
        chosen = suggested.get(self.suggestion)
        self._write(trainer, curve, suggested)
        if chosen is None:
            options = [option_text(name, prefix=_PREFIX) for name in ("start", "end")]
            logger.warning(_NONE, self.start, self.end, *options)
            return
        names = ", ".join(f"{name} {rate:.3g}" for name, rate in suggested.items())
        logger.info("lr_finder: %s; %d updates were tried.", names, len(curve.rates))
        trainer.log({f"lr_finder/{name}": rate for name, rate in suggested.items()})
        if self.apply:
            logger.info("lr_finder: %s", trainer.change_base_rate(chosen))

    def _search(self, trainer: TrainerProtocol) -> Curve:
        """Returns the losses of updates with rising rates, until one diverges in any process."""
        curve, optimizer = Curve(self.smoothing), TrialOptimizer(trainer)
        ratio = self.end / self.start
        count = trainer.gradient_accumulation_steps
        with contextlib.closing(_go_round(trainer)) as batches:
            for step in range(self.steps):
                rate = self.start * ratio ** (step / (self.steps - 1))
                total = 0.0
                for batch in itertools.islice(batches, count):
                    loss = trainer.compute_loss(batch)
                    optimizer.backward(loss, count)
                    total += float(loss.detach()) / count
                mean = trainer.total({"loss": total})["loss"] / trainer.world_size
                if not math.isfinite(mean):
                    break
                curve.add(rate, mean)
                lowest = min(curve.smoothed)
                if curve.smoothed[-1] > lowest + (self.stop_factor - 1) * abs(lowest):
                    break
                optimizer.step(rate)
        return curve

    def _write(self, trainer: TrainerProtocol, curve: Curve, suggested: dict[str, float]) -> None:
        if trainer.output_dir is None or not trainer.is_main_process or not curve.rates:
            return
        values = {name: getattr(curve, name) for name in ("rates", "losses", "smoothed")}
        found = {**values, "suggested": suggested, "chosen": self.suggestion, "applied": self.apply}
        (trainer.output_dir / "lr_finder.json").write_text(json.dumps(found))
        curve.draw(trainer.output_dir / "lr_finder.png", suggested, self.suggestion)


def _go_round(trainer: TrainerProtocol) -> Generator[Any, None, None]:
    """Yields the training data, from the start again where they end.

    Raises:
        UsageError: this process has no batch.
    """
    while True:
        batch = None
        for batch in trainer.pass_over_training_data():
            yield batch
        if batch is None:
            raise UsageError("LRFinderCallback: a pass over the training data gives no batch.")
