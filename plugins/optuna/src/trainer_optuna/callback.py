"""The callback: when the trial is told what, and how all processes come to its answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, Literal

from trainer_callback import RunError, TrainerCallback, TrainerProtocol, UsageError, hookimpl
from trainer_callback.errors import closest
from trainer_callback.values import check_types

__all__ = ["OptunaCallback"]

logger: Final = logging.getLogger("trainer.optuna")

_OTHER_METRIC: Final = "optuna: %s was reported before the resume, and %s is now: it starts afresh."
_NO_TRIAL: Final = (
    "there is no trial. Write OptunaCallback(trial) in the objective of a study; a command line "
    "has none."
)
_WAITING_TRIAL: Final = (
    "a TorchDistributedTrial waits for reports of all processes. Pass the trial itself in the main "
    "process, and None in the others."
)
_SEVERAL: Final = (
    "the study has %d objectives, and optuna takes reports for one. Leave the callback out."
)


@dataclass
class _State:
    """What a resumed run has to know.

    Attributes:
        monitor: the metric that was reported.
        reported: step of the trial -> its value.
        is_new: the metric was logged, and has not been reported yet.
    """

    monitor: str
    reported: dict[int, float] = field(default_factory=dict)
    is_new: bool = False


def _make_with_trial() -> OptunaCallback:
    """Returns one with a trial of its own, for `trainer plugins check`."""
    from optuna import create_study, logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        return OptunaCallback(create_study().ask())
    finally:
        logging.set_verbosity(level)


class OptunaCallback(TrainerCallback):
    """Reports a metric to an optuna trial, and ends the run by optuna.TrialPruned where the study's
    pruner finds it hopeless. For code: a command line has no trial.

    Of several processes the main one alone has a trial; all of them end together.

    Args:
        trial: of a study with one objective; of several processes, in the main one, and None in
            the others
        monitor: the metric that is reported
        report_at: at the end of each epoch, whose number is the step of the report; or at each
            validation, whose step is the number of updates
    """

    logs_metrics: tuple[str, ...] | None = ()
    contract: ClassVar[Mapping[str, object]] = {"passive": True, "make": _make_with_trial}

    def __init__(
        self,
        trial: Any = None,
        monitor: str = "val_loss",
        *,
        report_at: Literal["epoch", "validation"] = "epoch",
    ) -> None:
        """Keeps each option but the trial, which is no option, as the attribute of its name.

        Raises:
            OptionError: an option is of another type.
        """
        check_types(OptunaCallback, locals(), "optuna_")
        self.monitor = monitor
        self.report_at = report_at
        self.state: _State = _State(monitor)
        self._trial = trial
        self._study: Any = getattr(trial, "study", None)  # a FixedTrial has none
        self._known: set[int] = set()

    @property
    def best(self) -> float | None:
        """The best value that was reported, as the study counts; NaN is none. None where there is
        none, or no study here.
        """
        values = [value for value in self.state.reported.values() if not math.isnan(value)]
        if not values or self._study is None:
            return None
        return max(values) if self._study.direction.name == "MAXIMIZE" else min(values)

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self.state = _State(**state) if state is not None else _State(self.monitor)
        if self.state.monitor != self.monitor:
            logger.warning(_OTHER_METRIC, self.state.monitor, self.monitor)
            self.state = _State(self.monitor)

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self.state = _State(self.monitor)
        try:
            from optuna import TrialPruned
        except ImportError as error:
            text = f"optuna cannot be imported: {error}. Install it: pip install optuna."
            raise _refuse(text) from error
        self.passes: tuple[type[BaseException], ...] = (TrialPruned,)
        names = getattr(trainer, "metric_names", None)
        if names is not None and not any(fnmatchcase(self.monitor, name) for name in names):
            raise self._unknown("this run will have", set(names) - {"*"})
        if trainer.is_main_process:
            self._check_trial()
            self._bring_up_to_date()
            self._note_run(trainer)

    def on_log(self, metrics: Mapping[str, float]) -> None:  # type: ignore[override]
        self.state.is_new = self.state.is_new or self.monitor in metrics

    @hookimpl(trylast=True)  # other callbacks may log the metric in the same event
    def on_validation_end(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:
        if self.report_at == "validation" and metrics:  # none: a signal cut it short
            self.state.is_new = self.state.is_new or self.monitor in metrics
            self._report(trainer, trainer.step, {**trainer.metrics, **metrics})

    @hookimpl(trylast=True)
    def on_epoch_end(  # type: ignore[override]  # its losses are among the metrics
        self, trainer: TrainerProtocol, epoch: int
    ) -> None:
        if self.report_at == "epoch":
            self._report(trainer, epoch, trainer.metrics)

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        return asdict(self.state)

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if trainer.is_main_process and self.best is not None:
            self._trial.set_user_attr("best_value", self.best)

    def _report(self, trainer: TrainerProtocol, step: int, metrics: Mapping[str, float]) -> None:
        """Reports in the main process, and ends the run in all of them, or in none.

        Raises:
            TrialPruned: the pruner says so.
            RunError: the main process has failed, and this is another.
        """
        error: Exception | None = None
        prunes = False
        if trainer.is_main_process:
            try:
                prunes = self._ask(step, metrics)
            except Exception as caught:  # the others wait for an answer
                error = caught
        self.state.is_new = False
        found = trainer.total({"prunes": prunes, "fails": error is not None})
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose traceback has this frame
        if found["fails"]:
            raise RunError("OptunaCallback failed in the main process, whose message says why.")
        if found["prunes"]:
            raise self.passes[0](f"{self.monitor} {metrics[self.monitor]:.6g} at step {step}")

    def _ask(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Reports the metric, once for each step; returns whether the trial is to be pruned."""
        if not self.state.is_new:
            if self.state.reported:
                return False
            raise self._unknown(f"by the end of the first {self.report_at} there is", metrics)
        self.state.reported[step] = metrics[self.monitor]
        if step in self._known:
            logger.info("optuna: step %d of the trial has its value already, which stays.", step)
            return False
        self._known.add(step)
        self._trial.report(metrics[self.monitor], step)
        return bool(self._trial.should_prune())

    def _check_trial(self) -> None:
        if self._trial is None:
            raise _refuse(_NO_TRIAL)
        if type(self._trial).__name__ == "TorchDistributedTrial":
            raise _refuse(_WAITING_TRIAL)
        if self._study is not None and len(self._study.directions) > 1:
            raise _refuse(_SEVERAL % len(self._study.directions))

    def _bring_up_to_date(self) -> None:
        """Reports what the trial lacks of what was reported before a resume: a trial that is tried
        again is a new one for optuna.
        """
        trials = [] if self._study is None else self._study.get_trials(deepcopy=False)
        own = [each for each in trials if each.number == self._trial.number]
        self._known = {step for each in own for step in each.intermediate_values}
        for step in sorted(self.state.reported.keys() - self._known):
            self._trial.report(self.state.reported[step], step)
        self._known |= self.state.reported.keys()

    def _note_run(self, trainer: TrainerProtocol) -> None:
        """Tells the trial which run is its own: also one that is killed can be found then."""
        where = trainer.output_dir
        self._trial.set_user_attr("output_dir", None if where is None else str(where))
        self._trial.set_user_attr("run_id", trainer.run_id)
        self._trial.set_user_attr("hyperparameters", dict(trainer.hyperparameters))
        logger.info("optuna: trial %d, %s.", self._trial.number, self._trial.params)

    def _unknown(self, where: str, names: Iterable[str]) -> UsageError:
        known = sorted(names)
        question = closest(self.monitor, known)
        return _refuse(
            f"{where} no metric {self.monitor!r}.{question} Use one of {', '.join(known)}."
        )


def _refuse(text: str) -> UsageError:
    return UsageError(f"OptunaCallback: {text}")
