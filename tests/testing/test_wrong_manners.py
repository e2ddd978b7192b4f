"""Callbacks that do their work and have one bad habit each: the contract names it, and says what to
do.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.testing import CallbackContract
from trainer.testing.runner import run_clauses
from trainer_callback import TrainerCallback, UsageError

RUNNING = "test_it_leaves_nothing_running"
TORCH_HOOKS = "test_it_leaves_no_hook_of_torch_behind"
FILES = "test_it_closes_its_files"
PROCESS = "test_it_leaves_the_process_as_it_was"
OUTSIDE = "test_it_writes_to_the_output_directory_only"
PRINTS = "test_it_prints_nothing_in_every_batch"
KEEPS = "test_it_keeps_no_batches"
BATCH = "test_it_changes_no_batch_in_place"
MODE = "test_it_leaves_the_model_in_its_mode"
WAITS = "test_it_does_not_wait_for_the_device_in_every_batch"
VALIDATION = "test_it_survives_a_run_without_validation"
SECOND = "test_a_second_run_of_the_same_object_starts_clean"
KILLED = "test_a_killed_run_goes_on_as_if_nothing_had_happened"
ENDED = "test_an_ended_run_goes_on_as_if_it_had_not_ended"


def find_failures(
    contract: type[CallbackContract], place: Path, *, resumes: bool = False
) -> dict[str, str]:
    """Returns clause -> message of those that fail; without those that kill and resume a run, which
    take as long as all the others, unless they are asked for.
    """
    clauses = {name for name in dir(contract) if name.startswith("test_")}
    results = run_clauses(contract, place, clauses - (set() if resumes else {KILLED, ENDED}))
    return {each.clause: each.message for each in results if each.outcome == "failed"}


class ThreadStarter(TrainerCallback):
    """Leaves a thread running, which waits for what never comes."""

    def on_train_start(self) -> None:  # type: ignore[override]
        self._end = threading.Event()
        threading.Thread(target=self._end.wait, name="sender", daemon=True).start()


class ForwardHook(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        trainer.model[0].register_forward_hook(lambda module, inputs, output: None)


class GradientHook(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        trainer.model[0].weight.register_hook(lambda gradient: None)


class StepHook(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        trainer.optimizer.register_step_post_hook(lambda *values: None)


class OpenFile(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        if trainer.output_dir is not None:
            self._file = (trainer.output_dir / "log.txt").open("a")
            kept.append(self._file)


kept: list[Any] = []
"""What a framework would hold on to."""


class SignalHandler(TrainerCallback):
    def on_train_start(self) -> None:  # type: ignore[override]
        signal.signal(signal.SIGUSR2, lambda number, frame: None)


class RootLogger(TrainerCallback):
    def on_train_start(self) -> None:  # type: ignore[override]
        logging.getLogger().addHandler(logging.NullHandler())


class Anomaly(TrainerCallback):
    def on_train_start(self) -> None:  # type: ignore[override]
        torch.use_deterministic_algorithms(True)


class Relative(TrainerCallback):
    def on_epoch_end(self, val_loss: Any) -> None:  # type: ignore[override]
        Path("losses.csv").write_text(f"{val_loss}\n")


class Temporary(TrainerCallback):
    def on_train_end(self) -> None:  # type: ignore[override]
        tempfile.mkdtemp(prefix="picture")


class Printing(TrainerCallback):
    def on_batch_end(self, batch_idx: int) -> None:  # type: ignore[override]
        print("batch", batch_idx)


class Logging(TrainerCallback):
    def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
        logging.getLogger("trainer.logging").warning("update %d", trainer.step)


class KeepsBatches(TrainerCallback):
    def on_batch_start(self, batch: Any) -> None:  # type: ignore[override]
        kept.append(batch)


class KeepsGraphs(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        self._handle = trainer.model.register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )

    def close(self) -> None:
        self._handle.remove()


class ChangesBatch(TrainerCallback):
    def on_batch_start(self, batch: Any) -> None:  # type: ignore[override]
        batch[0].mul_(0.5)


class LeavesEvaluation(TrainerCallback):
    def on_epoch_end(self, trainer: Any) -> None:  # type: ignore[override]
        trainer.model[0].eval()


class Freezes(TrainerCallback):
    def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
        trainer.model[0].bias.requires_grad_(False)


class WaitsInForwardHook(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        self._handle = trainer.model[0].register_forward_hook(self._look)

    def _look(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self._largest = output.abs().max().item()

    def close(self) -> None:
        self._handle.remove()


class FormatsTheLoss(TrainerCallback):
    def on_epoch_end(self, val_loss: Any) -> None:  # type: ignore[override]
        self._shown = f"{val_loss:.3f}"


class NeverSetBack(TrainerCallback):
    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self) -> None:  # type: ignore[override]
        self.count += 1

    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self.count}

    def on_snapshot_load(self, state: Any) -> None:  # type: ignore[override]
        self.count = state["count"] if state else 0


class SavesLate(NeverSetBack):
    """Returns the state of the event before."""

    def on_train_start(self, resumed: bool) -> None:  # type: ignore[override]
        if not resumed:
            self.count = 0
        self._saved = self.count

    def on_step_end(self) -> None:  # type: ignore[override]
        self._saved = self.count
        self.count += 1

    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self._saved}


@pytest.mark.parametrize(
    ("callback", "clauses", "message"),
    [
        (ThreadStarter, [RUNNING], "it leaves the thread 'sender' ("),
        (ForwardHook, [TORCH_HOOKS], "another run would call them: forward hook of 0. Keep what"),
        (GradientHook, [TORCH_HOOKS], "would call them: backward hook of 0.weight. Keep what reg"),
        (StepHook, [TORCH_HOOKS], "step post hook of the optimizer. Keep what register_..._hook"),
        (OpenFile, [FILES], "second/log.txt. Close them in close(), which is called whichever way"),
        (SignalHandler, [PROCESS], "it set a signal handler. Put back in close() what was there"),
        (RootLogger, [PROCESS], "it configured logging. Put back in close()"),
        (Anomaly, [PROCESS], "it set torch's deterministic algorithms. Put back in close()"),
        (Relative, [OUTSIDE], "it leaves losses.csv in the current directory, or in that of temp"),
        (Temporary, [OUTSIDE], "it leaves picture"),
        (Printing, [PRINTS], "in 16 of 16 batches (on_batch_end: stdout in 16), and a run has mil"),
        (Logging, [PRINTS], "in 16 of 16 batches (on_step_end: logging in 16)"),
        (KeepsBatches, [KEEPS], "the batch of 16 of its 16 batches is still there, and memory run"),
        (KeepsGraphs, [KEEPS], "Keep output.detach(), or better a number of it, not the graph its"),
        (ChangesBatch, [BATCH], "in place (on_batch_start, batch 0), which the data set may still"),
        (LeavesEvaluation, [MODE], "on_epoch_end leaves '0' in evaluation mode. Put back in the s"),
        (WaitsInForwardHook, [WAITS], "(forward hook of 0: item in 16), and a GPU idles"),
        (FormatsTheLoss, [VALIDATION], "failed in on_epoch_end: TypeError: unsupported format"),
        (NeverSetBack, [SECOND], "Set back in on_train_start(resumed=False) what changes during"),
        (SavesLate, [KILLED, ENDED], "Return what it needs in on_snapshot_save"),
    ],
)
def test_a_bad_habit_fails_its_own_clause_and_no_other(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    callback: type[TrainerCallback],
    clauses: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))  # where one of them leaves a file

    class Contract(CallbackContract):
        def make(self) -> TrainerCallback:
            return callback()

    try:
        failures = find_failures(Contract, tmp_path, resumes=KILLED in clauses)
    finally:
        for each in kept:
            getattr(each, "close", int)()
        kept.clear()
    assert sorted(failures) == clauses
    assert message in failures[clauses[0]]


def test_a_passive_callback_leaves_gradients_switched_on(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        passive = True

        def make(self) -> Freezes:
            return Freezes()

    with pytest.raises(pytest.fail.Exception, match=r"leaves '0.bias' with requires_grad"):
        Contract().test_it_leaves_the_model_in_its_mode(tmp_path)


class LinkMaker(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        if not (link := trainer.output_dir / "newest.log").is_symlink():
            link.symlink_to("to-come.log")


def test_a_link_to_what_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        def make(self) -> LinkMaker:
            return LinkMaker()

    assert [each.outcome for each in run_clauses(Contract, tmp_path, {KILLED})] == ["passed"]


def test_a_callback_may_say_that_it_changes_batches(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        changes_batches = True

        def make(self) -> ChangesBatch:
            return ChangesBatch()

    assert find_failures(Contract, tmp_path) == {}


def test_a_passive_callback_cannot_say_that_it_changes_batches(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        passive = changes_batches = True

        def make(self) -> ChangesBatch:
            return ChangesBatch()

    with pytest.raises(pytest.fail.Exception, match="it changes the batch in place"):
        Contract().test_it_changes_no_batch_in_place(tmp_path)


class NeedsValidation(TrainerCallback):
    def on_train_start(self, trainer: Any) -> None:  # type: ignore[override]
        if not trainer.has_validation:
            raise UsageError("NeedsValidation watches val_loss. Give the run a validation set.")


def test_to_refuse_a_run_without_validation_is_right(tmp_path: Path) -> None:
    class Contract(CallbackContract):
        def make(self) -> NeedsValidation:
            return NeedsValidation()

    assert find_failures(Contract, tmp_path) == {}


@pytest.mark.parametrize("name", [PRINTS, PRINTS.removeprefix("test_")])
def test_a_waived_clause_is_skipped_with_its_reason(tmp_path: Path, name: str) -> None:
    class Contract(CallbackContract):
        waived_clauses = {name: "it is a debugger"}

        def make(self) -> Printing:
            return Printing()

    results = list(run_clauses(Contract, tmp_path, only=[PRINTS]))
    assert [(each.outcome, each.message) for each in results] == [
        ("skipped", "waived: it is a debugger")
    ]


def test_a_clause_with_parameters_can_be_waived(pytester_file: Any) -> None:
    assert pytester_file(KILLED) == "5 skipped"


@pytest.fixture
def pytester_file(tmp_path: Path) -> Any:
    import re
    import subprocess
    import sys

    def run(clause: str) -> str:
        (tmp_path / "test_it.py").write_text(
            "from trainer.testing import CallbackContract\n"
            "from trainer_callback import TrainerCallback\n\n"
            "class TestContract(CallbackContract):\n"
            f"    waived_clauses = {{{clause!r}: 'its state is a file'}}\n"
            "    def make(self):\n        return TrainerCallback()\n"
        )
        words = ["-m", "pytest", "-q", "-k", clause, "-p", "no:cacheprovider", "-n0"]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        found = re.search(r"^\d+ \w+(?=, \d+ deselected)", done.stdout, re.MULTILINE)
        assert found is not None, done.stdout + done.stderr
        return found[0]

    return run


def test_a_clause_that_does_not_exist_cannot_be_waived() -> None:
    with pytest.raises(UsageError, match="no such clause"):

        class Contract(CallbackContract):
            waived_clauses = {"it_keeps_no_batch": "why not"}


def test_a_clause_is_not_waived_without_a_reason() -> None:
    with pytest.raises(UsageError, match=r"no reason for 'it_keeps_no_batches'. Say in a sentence"):

        class Contract(CallbackContract):
            waived_clauses = {"it_keeps_no_batches": " "}
