"""The callback: which updates are recorded, and what is made of a recording."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Final

from trainer_callback import TrainerCallback, TrainerProtocol, UsageError, hookimpl, option_text
from trainer_callback.checks import option_error
from trainer_callback.values import check_types

from .recording import Recording

__all__ = ["ProfilerCallback"]

logger: Final = logging.getLogger("trainer.profiler")

_PREFIX: Final = "profiler_"

_refuse = partial(option_error, "ProfilerCallback", _PREFIX)

_TWO: Final = (
    "ProfilerCallback: another profiler is on in this process, and torch has one at a time: a "
    "second one would end it silently. Leave one of them out."
)
_NOTHING: Final = (
    "profiler: nothing is recorded in updates %d to %s: the first recording begins behind update "
    "%d, and the last one ends with update %d. Use another %s or %s."
)
_WRITTEN: Final = "profiler: the trace of updates %d to %d is %s (%.1f MB).%s"
_COST: Final = " They took %.1f ms each, and others %.1f ms without the profiler."


class _Seen:
    """What this process has seen of the run: seconds of updates without the profiler and with it,
    when the last one ended, whether a trace was written, and whether it is said that none will be.
    """

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.slow: list[float] = []
        self.last: float = 0.0
        self.wrote = self.is_told = False


class ProfilerCallback(TrainerCallback):
    """Records some updates with torch.profiler: a trace for https://ui.perfetto.dev, and a table
    of the operators that took longest.

    A window is `wait` updates without the profiler, `warmup` ones in which it runs and keeps
    nothing, and `active` ones that are recorded. Windows are counted by the run's updates, over all
    resumes.

    Args:
        wait: updates without the profiler, at the start of each window
        warmup: updates in which it runs and keeps nothing
        active: updates that are recorded
        repeat: number of windows
        record_shapes: record the shapes of the operators' inputs
        with_stack: record the lines of Python that called them
        profile_memory: record what is allocated
        memory_snapshot: on CUDA, keep a history of all allocations, and write it where memory
            runs out
    """

    critical = False
    needs_output_dir = True
    logs_metrics: tuple[str, ...] | None = ()
    contract: ClassVar[Mapping[str, object]] = {
        "passive": True,
        "varying": ("profiler/operators",),
    }
    _in_use: ClassVar[ProfilerCallback | None] = None

    def __init__(
        self,
        wait: int = 10,
        warmup: int = 2,
        active: int = 3,
        *,
        repeat: int = 1,
        record_shapes: bool = False,
        with_stack: bool = False,
        profile_memory: bool = False,
        memory_snapshot: bool = False,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(ProfilerCallback, locals(), _PREFIX)
        for name, least in (("wait", 0), ("warmup", 1), ("active", 1), ("repeat", 1)):
            if (value := locals()[name]) < least:
                raise _refuse(name, f"at least {least}", value, use=least)
        self.wait = wait
        self.warmup = warmup
        self.active = active
        self.repeat = repeat
        self.record_shapes = record_shapes
        self.with_stack = with_stack
        self.profile_memory = profile_memory
        self.memory_snapshot = memory_snapshot
        self._recording: Recording | None = None
        self._seen = _Seen()

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        import torch
        from torch.autograd import profiler

        if ProfilerCallback._in_use is not None or profiler._is_profiler_enabled:
            raise UsageError(_TWO)
        ProfilerCallback._in_use = self
        self._seen = _Seen()
        self._stepped = False
        self._stem: str = f"rank-{trainer.rank}"
        self._folder: Path = Path(trainer.output_dir or ".") / "profiler"
        self._folder.mkdir(exist_ok=True)
        for path in [] if resumed else self._folder.glob(f"{self._stem}-updates-*.json"):
            path.unlink()  # of the run that this one takes the place of
        lead, steps = self.wait + self.warmup, trainer.max_steps
        end = (lead + self.active) * self.repeat
        self._seen.is_told = trainer.step >= end or (steps is not None and steps <= lead)
        if self._seen.is_told:
            options = [option_text(name, prefix=_PREFIX) for name in ("wait", "repeat")]
            until = "the end" if steps is None else steps
            logger.warning(_NOTHING, trainer.step + 1, until, lead, end, *options)
        if self.memory_snapshot and trainer.device.type == "cuda":
            torch.cuda.memory._record_memory_history()
        elif self.memory_snapshot:
            logger.warning("profiler: there is no memory_snapshot on %s.", trainer.device)

    @hookimpl(trylast=True)
    def on_batch_start(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        done = self._place(trainer.step)
        if self._recording is None and done >= 0:
            from torch.autograd import profiler

            if profiler._is_profiler_enabled:
                raise UsageError(_TWO)
            names = ("record_shapes", "with_stack", "profile_memory")
            settings = {name: bool(getattr(self, name)) for name in names}
            self._recording = Recording(self.warmup, self.active, done, **settings)
        self._enter("forward")

    @hookimpl(trylast=True)
    def on_forward_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._enter("backward")

    @hookimpl(trylast=True)
    def on_backward_end(self, trainer: TrainerProtocol) -> None:
        self._enter("step")

    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        self._enter(None)
        self._stepped = True

    @hookimpl(trylast=True)
    def on_batch_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._enter(None)
        if not self._stepped:
            return
        before, self._seen.last, self._stepped = self._seen.last, time.perf_counter(), False
        recording = self._recording
        if before and (recording is None or recording.records):
            (self._seen.plain if recording is None else self._seen.slow).append(
                self._seen.last - before
            )
        if recording is not None:
            is_last = self._place(trainer.step) <= 0
            recording.end_update(trainer.step, is_last=is_last)
            if is_last:
                self._finish(trainer)

    @hookimpl(tryfirst=True)
    def on_validation_start(self, trainer: TrainerProtocol) -> None:
        self._enter("validation")

    @hookimpl(trylast=True)
    def on_validation_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._enter(None)
        self._seen.last = 0.0

    def on_exception(self, trainer: TrainerProtocol, exception: BaseException) -> None:
        import torch

        is_memory = isinstance(exception, torch.OutOfMemoryError)
        if self.memory_snapshot and is_memory and trainer.device.type == "cuda":
            path = self._folder / f"{self._stem}-memory.pickle"
            torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
            logger.info(
                "profiler: what held the memory is in %s, for pytorch.org/memory_viz.", path
            )

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        self._finish(trainer)
        if not (self._seen.wrote or self._seen.is_told):
            logger.warning("profiler: the run ended before an update was recorded.")

    def close(self) -> None:
        import torch

        if self._recording is not None:
            self._recording.stop()
        self._recording = None
        if ProfilerCallback._in_use is self:
            ProfilerCallback._in_use = None
            if self.memory_snapshot and torch.cuda.is_available():
                torch.cuda.memory._record_memory_history(enabled=None)

    def _place(self, step: int) -> int:
        """Returns how many updates with the profiler lie behind `step` in its window; below 0 where
        it waits, or all windows are over.
        """
        window, place = divmod(step, self.wait + self.warmup + self.active)
        return place - self.wait if window < self.repeat else -1

    def _enter(self, phase: str | None) -> None:
        if self._recording is not None:
            self._recording.enter(phase)

    def _finish(self, trainer: TrainerProtocol) -> None:
        """Ends the recording, if there is one, and writes what it has."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        recording.stop()
        if not recording.updates:
            return
        first, last = recording.updates[0], recording.updates[-1]
        path = self._folder / f"{self._stem}-updates-{first}-{last}.json"
        recording.write(path)
        self._seen.wrote = True
        known = self._seen.plain and self._seen.slow
        cost = (
            _COST % (median(self._seen.slow) * 1e3, median(self._seen.plain) * 1e3) if known else ""
        )
        logger.info(_WRITTEN, first, last, path, path.stat().st_size / 1e6, cost)
        if trainer.is_main_process:
            by = "device" if trainer.device.type == "cuda" else "cpu"
            text = recording.table(by=by, by_shape=self.record_shapes)
            trainer.log_text("profiler/operators", text)
