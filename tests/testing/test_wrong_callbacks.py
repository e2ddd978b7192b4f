"""Callbacks with one classic mistake each: the contract finds it in the clause that is about it."""

from __future__ import annotations

import inspect
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.testing import CallbackContract
from trainer_callback import TrainerCallback, UsageError

STATE = "test_its_state_is_plain_data"
KILLED = "test_a_killed_run_goes_on_as_if_nothing_had_happened"
ENDED = "test_an_ended_run_goes_on_as_if_it_had_not_ended"
PASSIVE = "test_a_passive_callback_changes_nothing"
HOOKS = "test_its_hooks_and_their_arguments_exist"
WAITS = "test_it_does_not_wait_for_the_device_in_every_batch"
NO_UPDATES = "test_it_survives_a_run_without_updates"


def run_contract(contract: type[CallbackContract], place: Path) -> dict[str, str]:
    """Runs every test of `contract`, each with every parameter; returns test -> what it says of
    the callback, for those that fail.
    """
    failures: dict[str, str] = {}
    for name in [name for name in dir(contract) if name.startswith("test_")]:
        test = getattr(contract(), name)
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        rows = [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]
        for number, arguments in enumerate(rows):
            if "tmp_path" in inspect.signature(test).parameters:
                arguments["tmp_path"] = place / f"{name}-{number}"
                arguments["tmp_path"].mkdir()
            try:
                test(**arguments)
            except pytest.fail.Exception as failure:
                failures.setdefault(name, str(failure.msg))
            except pytest.skip.Exception:
                continue
    return failures


class Counter(TrainerCallback):
    """A right one, to be spoilt."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, resumed: bool) -> None:  # type: ignore[override]
        if not resumed:
            self.count = 0

    def on_step_end(self) -> None:  # type: ignore[override]
        self.count += 1

    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self.count}

    def on_snapshot_load(self, checkpoint: Any) -> None:  # type: ignore[override]
        saved = checkpoint["callback_state"].get(type(self).__name__, {"count": 0})
        self.count = saved["count"]


class Misspelt(Counter):
    def on_epoch_ended(self) -> None: ...


class WrongArgument(Counter):
    def on_epoch_end(self, validation_loss: float) -> None: ...  # type: ignore[override]


class ForgetfulEachTen(Counter):
    def on_train_start(self) -> None:  # type: ignore[override]
        self.looks = 0

    def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
        self.looks += trainer.step % 10 == 0


class Forgetful(Counter):
    def on_snapshot_load(self, checkpoint: Any) -> None:  # type: ignore[override]
        self.count = 0


class Unsaved(TrainerCallback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, resumed: bool) -> None:  # type: ignore[override]
        if not resumed:
            self.count = 0

    def on_step_end(self) -> None:  # type: ignore[override]
        self.count += 1


class Resetting(Counter):
    def on_train_start(self, resumed: bool) -> None:  # type: ignore[override]
        self.count = 0


class Unsaveable(Counter):
    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self.count, "log": {"stream": object()}}


class Converted(Counter):
    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self.count, "recent": deque([1.0])}


class Meddling(Counter):
    def on_backward_end(self, trainer: Any) -> None:
        for parameter in trainer.model.parameters():
            parameter.grad.mul_(0.5)


class Drawing(Counter):
    def on_step_end(self) -> None:  # type: ignore[override]
        super().on_step_end()
        torch.rand(1)


class Stopping(Counter):
    def should_stop_training(self) -> bool:  # type: ignore[override]
        return self.count >= 5


class Waiting(Counter):
    def on_batch_end(self, loss: Any) -> None:  # type: ignore[override]
        self.shown = f"{loss:.3f}"


class Hasty(Counter):
    def on_train_end(self) -> None:  # type: ignore[override]
        if self.count == 0:
            raise ZeroDivisionError("mean of no updates")


class HastyLogger(Hasty):
    critical = False


class TestARightOne(CallbackContract):
    passive = True

    def make(self) -> Counter:
        return Counter()


@pytest.mark.parametrize(
    ("callback", "clauses", "message"),
    [
        (Misspelt, [HOOKS], "there is no hook 'on_epoch_ended'. Did you mean 'on_epoch_end'?"),
        (WrongArgument, [HOOKS], "asks for 'validation_loss', which on_epoch_end does not have"),
        (ForgetfulEachTen, [KILLED], "killed after update 11 and resumed is not as if"),
        (Forgetful, [KILLED, ENDED], "state.count is 10 instead of 12. Return what it needs in"),
        (Resetting, [KILLED, ENDED], "do not reset it in on_train_start(resumed=True)"),
        (Unsaved, [KILLED, ENDED], "self.count is 10 instead of 12"),
        (Unsaveable, [STATE], "Unsaveable.log.stream is a builtins.object"),
        (Converted, [STATE], "state.recent is [1.0] instead of deque([1.0])"),
        (Meddling, [PASSIVE], "the weight '0.weight' is another one at update 2"),
        (Drawing, [PASSIVE], "draws from the global random numbers of torch, before update 2"),
        (Stopping, [PASSIVE], "the run ended before update 6"),
        (Waiting, [WAITS], "in 16 of 16 batches (on_batch_end: __format__ in 16)"),
        (Hasty, [NO_UPDATES], "failed in on_train_end: ZeroDivisionError: mean of no updates"),
        (HastyLogger, [NO_UPDATES], "failed in on_train_end: ZeroDivisionError: mean of no"),
    ],
)
def test_a_mistake_fails_its_own_clause_and_no_other(
    tmp_path: Path, callback: type[TrainerCallback], clauses: list[str], message: str
) -> None:
    class Contract(CallbackContract):
        passive = True

        def make(self) -> TrainerCallback:
            return callback()

    failures = run_contract(Contract, tmp_path)
    assert sorted(failures) == clauses
    assert message in failures[clauses[0]]


def test_a_shared_object_is_no_default(tmp_path: Path) -> None:
    shared = Counter()

    class Contract(CallbackContract):
        def make(self) -> Counter:
            return shared

    with pytest.raises(pytest.fail.Exception, match="the same object twice"):
        Contract().test_it_builds_from_its_defaults()


def test_a_plugin_that_is_not_installed_is_not_found() -> None:
    class Contract(CallbackContract):
        entry_point = "counter_of_nowhere"

        def make(self) -> Counter:
            return Counter()

    with pytest.raises(pytest.fail.Exception, match="no installed distribution has the entry poi"):
        Contract().test_its_distribution_is_found()


def test_what_no_two_runs_have_in_common_can_be_left_out(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        varying = ("count",)

        def make(self) -> Forgetful:
            return Forgetful()

    assert run_contract(Contract, tmp_path) == {}


class NeedsPlace(Counter):
    """Rightly refuses a run that cannot do what it is there for."""

    def on_train_start(self, trainer: Any, resumed: bool) -> None:
        if trainer.output_dir is None:
            raise UsageError("NeedsPlace writes pictures. Give the run an output_dir.")
        super().on_train_start(resumed)


class NeedsFolder(Counter):
    """Wrongly refuses a run that has a place to write."""

    def on_train_start(self, trainer: Any, resumed: bool) -> None:
        raise UsageError("never")


def test_to_refuse_a_run_without_output_dir_is_right(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        def make(self) -> Counter:
            return NeedsPlace()

    assert run_contract(Contract, tmp_path) == {}


def test_to_refuse_every_run_is_a_failure(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        def make(self) -> Counter:
            return NeedsFolder()

    failures = run_contract(Contract, tmp_path)
    assert "test_it_survives_a_run_of_one_batch" in failures
    assert "it refuses the run: NeedsFolder" in failures["test_it_survives_a_run_of_one_batch"]


@pytest.mark.parametrize(
    "own",
    [
        {"output_dir": Path("of_the_author")},
        {"snapshot_interval": 2},
        {"snapshot_interval": 5, "snapshot_epochs": False, "keep_snapshots": 1},
        {"max_steps": 3},
        {"max_steps": 5},
        {"epochs": 1},
        {"log_interval": 1, "eval_interval": 1},
        {"gradient_accumulation_steps": 1},
    ],
)
def test_settings_of_the_author_do_not_break_a_clause(tmp_path: Path, own: dict[str, Any]) -> None:
    class Contract(CallbackContract):
        passive = True
        settings = own

        def make(self) -> Counter:
            return Counter()

    assert run_contract(Contract, tmp_path) == {}
    assert not Path("of_the_author").exists()


def test_settings_of_the_author_reach_the_runs(tmp_path: Path) -> None:
    rates: list[Any] = []

    class Looks(Counter):
        def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
            rates.append(trainer.config.max_grad_norm)
            super().on_step_end()

    class Contract(CallbackContract):
        settings = {"max_grad_norm": 0.25}

        def make(self) -> Counter:
            return Looks()

    assert run_contract(Contract, tmp_path) == {}
    assert set(rates) == {0.25}


class OutsideError(Exception):
    """What somebody outside the run waits for."""


class Prunes(TrainerCallback):
    passes = (OutsideError,)

    def on_epoch_end(self) -> None:  # type: ignore[override]
        raise OutsideError


class PrunesContract(CallbackContract):
    def make(self) -> object:
        return Prunes()


def test_a_callback_that_lets_its_exception_pass_is_not_failed_for_it(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="an exception that it lets pass: OutsideError"):
        PrunesContract().test_its_state_is_plain_data(tmp_path)
