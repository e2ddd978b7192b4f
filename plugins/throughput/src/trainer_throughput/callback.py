"""The callback: which hook is which moment, and what is made of the times."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl, option_text
from trainer_callback.checks import option_error
from trainer_callback.values import check_types

from .memory import forget_peak, peak_memory
from .stopwatch import Stopwatch, Update, percentile
from .work import Unit, count_batch, estimate_flops

__all__ = ["ThroughputCallback"]

logger: Final = logging.getLogger("trainer.throughput")

_refuse = partial(option_error, "ThroughputCallback", "throughput_")

_GIB: Final = float(1 << 30)


_UNCERTAIN: Final = (
    "throughput: it is not certain how many items a batch has: %d are counted. Sizes that all "
    "agree are certain: the first dimension of all tensors, or the length of a list of dicts."
)


class ThroughputCallback(TrainerCallback):
    """Measures how fast the run is: tokens or items per second, step times, waiting for data,
    model FLOPs utilisation, memory.

    It watches only. Validations, snapshots, logging, what other callbacks do at an update, such as
    samples, and the first update, which warms up, are left out of all times. It waits for no
    device: the trainer itself fetches the losses once an update, so that host time is device time.
    In a run of several processes the numbers are this one's.

    Args:
        interval: updates between two log events
        window: shares and percentiles are those of the last so many updates
        peak_tflops: the most TFLOP/s that the device reaches on paper; without it there is no
            throughput/mfu
        flops_per_item: training FLOPs of one token or item; by default estimated for a
            transformer, from its parameters
    """

    critical = False
    logs_metrics: tuple[str, ...] | None = ("throughput/*",)
    contract: ClassVar[Mapping[str, object]] = {
        "passive": True,
        "varying": ("throughput/*", "*.step_ms", "self._watch.*"),
    }

    def __init__(
        self,
        interval: int = 50,
        *,
        window: int = 200,
        peak_tflops: float | None = None,
        flops_per_item: float | None = None,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(ThroughputCallback, locals(), "throughput_")
        for name, value in (("interval", interval), ("window", window)):
            if value < 1:
                raise _refuse(name, "at least 1", value, use=50)
        for name, number in (("peak_tflops", peak_tflops), ("flops_per_item", flops_per_item)):
            if number is not None and not 0 < number < math.inf:
                raise _refuse(name, "above 0", number, use=1e3)
        self.interval = interval
        self.window = window
        self.peak_tflops = peak_tflops
        self.flops_per_item = flops_per_item
        self._watch = Stopwatch(window)
        self._unit: Unit | None = None
        self._flops: float | None = None
        self._updated = False

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._watch = Stopwatch(self.window)
        self._unit, self._flops, self._updated = None, self.flops_per_item, False
        forget_peak(trainer.device)
        steps = trainer.max_steps
        if steps is not None and steps < self.interval:
            text = "throughput: interval %d has no effect in a run of %d updates but for the end."
            logger.warning(text, self.interval, steps)

    @hookimpl(trylast=True)
    def on_epoch_start(self, trainer: TrainerProtocol, epoch: int) -> None:
        if trainer.batch_in_epoch == 0:  # else the loader has to find its place first
            self._watch.start_gap()

    @hookimpl(tryfirst=True)
    def on_batch_start(self, trainer: TrainerProtocol, batch_idx: int, batch: Any) -> None:
        count, unit, certain = count_batch(batch)
        if self._unit is None:
            self._unit = unit
            if not certain:
                logger.warning(_UNCERTAIN, count)
            self._find_flops(trainer, batch)
        self._watch.start_batch(count)

    @hookimpl(wrapper=True)
    def on_backward_end(  # type: ignore[override]  # a wrapper: yields to all other callbacks
        self,
    ) -> Generator[None, object, object]:
        return (yield from self._left_out())

    @hookimpl(wrapper=True)
    def on_step_end(  # type: ignore[override]
        self,
    ) -> Generator[None, object, object]:
        self._updated = True
        return (yield from self._left_out())  # in a batch there may be steps of several optimizers

    @hookimpl(wrapper=True)
    def on_batch_end(  # type: ignore[override]
        self, trainer: TrainerProtocol
    ) -> Generator[None, object, object]:
        self._watch.end_batch()
        answer = yield
        self._watch.start_gap()
        self._end_update(trainer)
        return answer

    @hookimpl(trylast=True)
    def should_stop_training(self, trainer: TrainerProtocol) -> None:
        self._watch.restart_gap()  # logging and validation are over; next is a batch or a snapshot

    def on_snapshot_save(self, trainer: TrainerProtocol, epoch: int, step: int) -> None:
        self._watch.drop_gap()

    @hookimpl(trylast=True)
    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        self._watch.restart_gap()

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if not self._watch.recent:
            return
        total, times = self._watch.total, self._step_times()
        values = self._rates(trainer, total)
        rate = values[f"{self._unit}_per_s"]
        half, most, nearly_all = times.values()
        parts = [
            f"{total.count:,} {self._unit} in {total.seconds:,.1f} s of training",
            f"{rate:,.0f} a second",
            f"{half:,.1f} ms an update (90 % within {most:,.1f}, 99 % within {nearly_all:,.1f})",
            f"{values['data_wait_share']:.1%} waiting for data",
        ]
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.1%}")
        if "peak_memory_gib" in values:
            parts.append(f"{values['peak_memory_gib']:,.2f} GiB of memory at most")
        logger.info("throughput: %s.", ", ".join(parts))

    def _left_out(self) -> Generator[None, object, object]:
        """What others do while it waits is not training."""
        self._watch.pause()
        try:
            return (yield)
        finally:
            self._watch.go_on()

    def _end_update(self, trainer: TrainerProtocol) -> None:
        """Counts, and logs, the update that the batch has ended, if it has ended one."""
        if not self._updated:
            return
        self._updated = False
        self._watch.end_update()
        if trainer.step % self.interval == 0:
            total = Update.sum(self._watch.recent)
            values = {**self._rates(trainer, total), **self._step_times()}
            trainer.log({f"throughput/{name}": value for name, value in values.items()})

    def _find_flops(self, trainer: TrainerProtocol, batch: Any) -> None:
        if self._flops is None:
            self._flops = estimate_flops(trainer.model, batch)
        if self._flops is None and self.peak_tflops is not None:
            logger.warning(
                "throughput: no MFU, for batches without input_ids do not tell the FLOPs. Use %s.",
                option_text("flops_per_item", prefix="throughput_"),
            )

    def _rates(self, trainer: TrainerProtocol, total: Update) -> dict[str, float]:
        """Returns what `total` comes to, by the names under which it is logged."""
        seconds = max(total.seconds, 1e-9)
        rate = total.count / seconds
        values = {f"{self._unit}_per_s": rate, "data_wait_share": total.wait / seconds}
        if self._flops is not None and self.peak_tflops is not None:
            values["mfu"] = rate * self._flops / (self.peak_tflops * 1e12)
        memory = peak_memory(trainer.device)
        if memory is not None:
            values["peak_memory_gib"] = memory / _GIB
        return values

    def _step_times(self) -> dict[str, float]:
        times = [update.seconds * 1e3 for update in self._watch.recent]
        return {f"step_ms_p{percent}": percentile(times, percent) for percent in (50, 90, 99)}
