"""The callback: when to measure, and what to do about what was measured."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_callback import StopRequest, TrainerCallback, TrainerProtocol, UsageError, option_text
from trainer_callback.values import check_types

from .arithmetic import forget
from .files import FOLDER, PAGE, PICTURE, RECORD, claim, safe_name
from .groups import Groups, Level, find_own, group_parameters, keep, name_part
from .measurement import Probe, Reading
from .names import readable
from .news import describe_change, describe_disconnected, describe_nonfinite
from .options import PREFIX, OnNonfinite, check_options, to_patterns
from .plan import describe_plan, is_due, warn_of_idle_options
from .record import Record, describe_step, make_entry, make_scalars
from .report import Report
from .state import MonitorState
from .summary import summarize
from .verdicts import Verdict, judge_all

if TYPE_CHECKING:
    import torch

__all__ = ["GradientMonitorCallback"]

logger: logging.Logger = logging.getLogger("trainer.gradient_monitor")

_MANY_SKIPPED: Final = 10
"""In a row: a loss scaler at its first scale, 2**16, rarely has to halve it as often."""


class GradientMonitorCallback(TrainerCallback):
    """Watches how gradients flow through the layers, in step with the snapshots.

    It measures once per update, when the gradients are complete and before they are clipped, and
    changes nothing: a run with it ends in the same weights, bit by bit, as a run without. It writes
    `gradients.jsonl` (the full record), `gradient_flow.png` and `gradient_flow.html` to
    `OUTPUT_DIR/gradient_flow/`.

    Of several optimizers each has its parameters watched as if it were alone: the first by this
    monitor, every other by one like it, with counts, verdicts and a folder of its own.

    Args:
        monitor_at_snapshots: measure at every update that a snapshot follows
        monitor_interval: measure also every so many updates
        monitor_at_epochs: measure also at the last update of each epoch
        monitor_level: what one row stands for
        monitor_depth: parts of a module's path that name a layer, for the level layer
        monitor_include: glob patterns of parameter names to measure
        monitor_exclude: glob patterns of parameter names to leave out
        monitor_norm_type: order of the layers' norm, above 0 or inf
        monitor_update_ratio: measure norm(new - old weight) / norm(old weight) too
        monitor_histogram: count the gradients' magnitudes in powers of two, from -24 to +8
        vanish_threshold: a layer whose gradient has an rms below this is vanishing
        explode_threshold: a layer whose norm is above so many times the running median of the total
            norm is exploding
        on_nonfinite: what to do about NaN and infinite gradients that no loss scaler caught
        report: draw the picture and write the page
        history: most measured updates that are kept in memory and drawn
    """

    option_prefix: ClassVar[str | None] = PREFIX
    critical = False
    logs_metrics: tuple[str, ...] | None = ("grad_*",)
    contract: ClassVar[Mapping[str, object]] = {"passive": True}

    def __init__(
        self,
        *,
        monitor_at_snapshots: bool = True,
        monitor_interval: int | None = None,
        monitor_at_epochs: bool = False,
        monitor_level: Level = "layer",
        monitor_depth: int = 2,
        monitor_include: Sequence[str] = (),
        monitor_exclude: Sequence[str] = (),
        monitor_norm_type: float = 2.0,
        monitor_update_ratio: bool = True,
        monitor_histogram: bool = False,
        vanish_threshold: float = 1e-7,
        explode_threshold: float = 100.0,
        on_nonfinite: OnNonfinite = "warn",
        report: bool = True,
        history: int = 512,
    ) -> None:
        check_types(GradientMonitorCallback, locals(), PREFIX)
        self.monitor_at_snapshots = monitor_at_snapshots
        self.monitor_interval = monitor_interval
        self.monitor_at_epochs = monitor_at_epochs
        self.monitor_level = monitor_level
        self.monitor_depth = monitor_depth
        self.monitor_include: tuple[str, ...] = to_patterns(monitor_include)
        self.monitor_exclude: tuple[str, ...] = to_patterns(monitor_exclude)
        self.monitor_norm_type: float = float(monitor_norm_type)
        self.monitor_update_ratio = monitor_update_ratio
        self.monitor_histogram = monitor_histogram
        self.vanish_threshold = vanish_threshold
        self.explode_threshold = explode_threshold
        self.on_nonfinite = on_nonfinite
        self.report = report
        self.history = history
        check_options(self)
        self.state: MonitorState = MonitorState.fresh({}, (), history)
        self._groups: Groups = {}
        self._name = ""
        self._optimizer: object = None
        self._others: dict[object, GradientMonitorCallback] = {}
        self._saved: dict[str, Any] = {}
        self._cut_at = 0
        self._record: Record | None = None
        self._report: Report | None = None
        self._probe: Probe | None = None
        self._clipped: torch.Tensor | None = None
        self._last: Reading | None = None
        self._stop: StopRequest | None = None

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._start(trainer)
        if state is None:  # called by hand, as in the first version
            state = checkpoint["callback_state"].get(self.state_key or type(self).__name__)
        self._saved = dict((state or {}).get("others", {}))
        if state is not None and not self.state.load_plain(state):
            logger.info("level, filter or model changed since the snapshot: a new history starts.")

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self._start(trainer)
        where = "no files, for there is no output directory"
        if trainer.output_dir is not None and trainer.is_main_process:
            folder = trainer.output_dir / FOLDER
            self._cut_at = trainer.step if resumed else 0
            self._open(folder, self._cut_at, trainer.max_grad_norm)
            where = f"record in {folder}"
        logger.info(
            "gradients: measures %d rows %s; %s.", len(self._groups), describe_plan(self), where
        )
        warn_of_idle_options(self, trainer)

    def on_backward_end(self, trainer: TrainerProtocol) -> None:
        if is_due(self, trainer):
            self._find_monitor(trainer)._measure(trainer)

    def on_gradients_clipped(
        self, trainer: TrainerProtocol, total_norm: torch.Tensor, clipped: torch.Tensor
    ) -> None:
        monitor = self._find_monitor(trainer)
        before = monitor._clipped
        monitor._clipped = clipped.float() if before is None else before + clipped

    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        monitor = self._find_monitor(trainer)
        monitor.state.count_update(skipped=skipped)
        if monitor.state.skipped_in_a_row == _MANY_SKIPPED:
            logger.warning(
                "update %d: %d updates in a row were skipped, whatever the loss scale: the loss "
                "or the gradients are not finite.",
                trainer.step,
                _MANY_SKIPPED,
            )
        if monitor._probe is not None:
            monitor._take(trainer, trainer.step, skipped=skipped)

    def should_stop_training(self, trainer: TrainerProtocol) -> StopRequest | None:
        return next((each._stop for each in self._monitors if each._stop is not None), None)

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object] | None:
        for monitor in self._monitors:
            if monitor._clipped is not None:
                monitor.state.clipped_since += int(monitor._clipped)
                monitor._clipped = None
            if monitor._record is not None:
                monitor._record.sync()
        self._saved.update({w._name: w.state.to_plain() for w in self._others.values()})
        others = {"others": dict(self._saved)} if self._saved else {}
        return {**self.state.to_plain(), **others}

    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        for monitor in self._monitors:
            if monitor._report is not None:
                monitor._report.write_if_cheap(monitor.state, monitor._last)

    def on_exception(self, trainer: TrainerProtocol, exception: BaseException) -> None:
        for monitor in self._monitors:
            if monitor._probe is not None:  # this update ended the run: say where it came from
                monitor.state.count_update(skipped=True)
                monitor._take(trainer, trainer.step + 1, skipped=True)

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if self.state.updates and not any(monitor.state.measured for monitor in self._monitors):
            logger.warning(
                "nothing was measured in %d updates: no snapshot was due. Use %s to measure every "
                "100 updates.",
                self.state.updates,
                option_text("monitor_interval", 100, PREFIX),
            )
        for monitor in self._monitors:
            if monitor.state.updates and monitor.state.measured:
                if monitor._report is not None:
                    monitor._report.write(monitor.state, monitor._last)
                page = monitor._report.page if monitor._report is not None else None
                logger.info("%s", summarize(monitor.state, page))

    def close(self) -> None:
        forget()

    @property
    def _monitors(self) -> tuple[GradientMonitorCallback, ...]:
        return (self, *self._others.values())

    def _find_monitor(self, trainer: TrainerProtocol) -> GradientMonitorCallback:
        """Returns the monitor of the optimizer at hand, which is made when it is first needed."""
        if trainer.optimizer is self._optimizer:
            return self
        monitor = self._others.get(trainer.optimizer)
        if monitor is None:
            monitor = copy.copy(self)
            monitor._start(trainer)
            own = find_own(trainer.model, trainer.optimizer)
            monitor._name = name_part(own, {each._name for each in self._others.values()})
            if trainer.output_dir is not None and trainer.is_main_process:
                folder = trainer.output_dir / FOLDER / safe_name(monitor._name)
                monitor._open(folder, self._cut_at, trainer.max_grad_norm)
            if monitor._name in self._saved:
                monitor.state.load_plain(self._saved[monitor._name])
            self._others[trainer.optimizer] = monitor
        return monitor

    def _measure(self, trainer: TrainerProtocol) -> None:
        own = keep(self._groups, find_own(trainer.model, trainer.optimizer))
        if own:
            self._probe = Probe(
                trainer,
                own,
                norm_type=self.monitor_norm_type,
                update_ratio=self.monitor_update_ratio,
                histogram=self.monitor_histogram,
            )

    def _start(self, trainer: TrainerProtocol) -> None:
        """Forgets every earlier run, and watches the optimizer at hand."""
        self._name, self._optimizer, self._others, self._saved = "", trainer.optimizer, {}, {}
        names = [name for name, _ in trainer.model.named_parameters()]
        self._groups = group_parameters(
            names,
            self.monitor_level,
            self.monitor_depth,
            self.monitor_include,
            self.monitor_exclude,
        )
        if not self._groups:
            raise UsageError(
                f"none of the model's {len(names)} parameters is left to measure with "
                f"monitor_include={list(self.monitor_include)} and monitor_exclude="
                f"{list(self.monitor_exclude)}. Their names look like "
                f"{', '.join(map(readable, names[:3]))}."
            )
        fingerprint = {
            "level": self.monitor_level,
            "depth": self.monitor_depth,
            "include": list(self.monitor_include),
            "exclude": list(self.monitor_exclude),
            "norm_type": self.monitor_norm_type,
        }
        self.state = MonitorState.fresh(fingerprint, tuple(self._groups), self.history)
        self._record = self._report = self._probe = self._clipped = self._last = self._stop = None

    def _open(self, folder: Path, step: int, limit: float | None) -> None:
        claim(folder, (RECORD, PAGE, PICTURE) if self.report else (RECORD,))
        self._record = Record(folder / RECORD)
        last = self._record.cut(step)
        if last < self.state.last_step:
            logger.warning(
                "%s ends at update %d, but %d was measured: the record has a gap.",
                self._record.path,
                last,
                self.state.last_step,
            )
        if self.report:
            self._report = Report(folder, self.vanish_threshold, limit)

    def _take(self, trainer: TrainerProtocol, step: int, *, skipped: bool) -> None:
        """Reads the probe and passes the numbers on to history, record, log and people."""
        assert self._probe is not None
        reading = self._last = self._probe.read(self._clipped, skipped=skipped)
        self._probe = self._clipped = None
        state = self.state
        median = state.running_median
        verdicts = judge_all(
            self._groups,
            reading,
            vanish_threshold=self.vanish_threshold,
            explode_limit=math.inf if median is None else self.explode_threshold * median,
        )
        counts = state.count_measured(step, reading.clipped, reading.loss_scale)
        described = describe_step(reading, trainer.max_grad_norm)
        step_values = {"skipped": skipped, **counts, **described}
        # A loss scaler finds its scale by trying: what it skips is no news about the layers.
        expected = skipped and trainer.precision == "fp16"
        known = {} if expected else verdicts
        state.history.add(reading, known, step=step, epoch=trainer.epoch, skipped=skipped)
        if self._record is not None:
            entry = make_entry(
                reading, verdicts, step=step, epoch=trainer.epoch, step_values=step_values
            )
            self._record.append(entry)
        if not expected:
            self._tell(trainer, reading, verdicts, step)
        if not skipped and math.isfinite(reading.total_norm):
            state.recent_norms.append(reading.total_norm)
        if step == trainer.step:
            end = f"/{self._name}" if self._name else ""
            trainer.log({name + end: value for name, value in make_scalars(step_values).items()})

    def _tell(
        self, trainer: TrainerProtocol, reading: Reading, verdicts: dict[str, Verdict], step: int
    ) -> None:
        """Says what is new, once, and does what `on_nonfinite` says."""
        state = self.state
        nonfinite = describe_nonfinite(reading)
        is_first = bool(nonfinite) and state.nonfinite_in_a_row == 0
        for line in (
            describe_disconnected(state.disconnected, reading.disconnected),
            describe_change(state.verdicts, verdicts),
            nonfinite if is_first and self.on_nonfinite != "ignore" else "",
        ):
            if line:
                logger.warning("update %d: %s.", step, line)
        if is_first and self.on_nonfinite == "snapshot":
            trainer.request_snapshot()
        if nonfinite and self.on_nonfinite == "stop":
            self._stop = StopRequest("non_finite_gradient", f"update {step}: {nonfinite}")
        state.remember(verdicts, reading.disconnected, nonfinite=bool(nonfinite))
