"""Callbacks that are right alone, and wrong where two processes train one model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.testing import CallbackContract
from trainer.testing.runner import run_clauses
from trainer_callback import TrainerCallback

TRAINS = "test_two_processes_train_one_model"
WRITES = "test_only_the_main_process_writes"
RESUMES = "test_two_killed_processes_go_on_as_if_nothing_had_happened"


class Drifts(TrainerCallback):
    """Adds noise that is another one in each process."""

    def on_backward_end(self, trainer: Any) -> None:  # type: ignore[override]
        generator = torch.Generator().manual_seed(trainer.step + 100 * trainer.rank)
        for parameter in trainer.model.parameters():
            parameter.grad.add_(torch.randn(parameter.shape, generator=generator))


class TotalsAlone(TrainerCallback):
    """Waits for a process that does not come."""

    def on_epoch_end(self, trainer: Any) -> None:  # type: ignore[override]
        if trainer.is_main_process:
            trainer.total({"epochs": 1.0})


class WritesEverywhere(TrainerCallback):
    def on_epoch_end(self, trainer: Any, val_loss: Any) -> None:  # type: ignore[override]
        if trainer.output_dir is not None:
            (trainer.output_dir / "losses.txt").write_text(f"{val_loss}")


class PrintsEverywhere(TrainerCallback):
    def on_epoch_end(self, epoch: int) -> None:  # type: ignore[override]
        print("epoch", epoch)


class OwnGenerator(TrainerCallback):
    """Draws from a generator of its own, which is another one in each process."""

    def on_train_start(self, trainer: Any, resumed: bool) -> None:  # type: ignore[override]
        if not resumed:
            self.generator = torch.Generator().manual_seed(trainer.rank)

    def on_step_end(self) -> None:  # type: ignore[override]
        self.drawn = torch.rand(1, generator=self.generator)

    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"generator": self.generator.get_state()}

    def on_snapshot_load(self, state: Any) -> None:  # type: ignore[override]
        self.generator = torch.Generator()
        if state is not None:
            self.generator.set_state(state["generator"])


class OwnGeneratorPerProcess(OwnGenerator):
    state_per_process = True


class DriftsContract(CallbackContract):
    def make(self) -> Drifts:
        return Drifts()


class TotalsAloneContract(CallbackContract):
    def make(self) -> TotalsAlone:
        return TotalsAlone()


class WritesEverywhereContract(CallbackContract):
    def make(self) -> WritesEverywhere:
        return WritesEverywhere()


class PrintsEverywhereContract(CallbackContract):
    def make(self) -> PrintsEverywhere:
        return PrintsEverywhere()


class OwnGeneratorContract(CallbackContract):
    def make(self) -> OwnGenerator:
        return OwnGenerator()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contract", "clause", "message"),
    [
        (DriftsContract, TRAINS, "draw from a generator whose seed is trainer.step"),
        (TotalsAloneContract, TRAINS, "number 0 fails: TotalsAlone (not installed) failed in on_"),
        (WritesEverywhereContract, WRITES, "writes losses.txt, as the first does. Write files wit"),
        (PrintsEverywhereContract, WRITES, "of two processes prints 'epoch 0', as the first"),
        (OwnGeneratorContract, RESUMES, "say state_per_process = True where each has its own"),
    ],
)
def test_a_mistake_of_two_processes_fails_its_clause(
    tmp_path: Path, contract: type[CallbackContract], clause: str, message: str
) -> None:
    results = list(run_clauses(contract, tmp_path, only=[TRAINS, WRITES, RESUMES]))
    failures = {each.clause: each.message for each in results if each.outcome == "failed"}
    assert sorted(failures) == [clause]
    assert message in failures[clause]


def test_a_contract_that_another_process_cannot_import_is_skipped() -> None:
    class Contract(CallbackContract):
        def make(self) -> TrainerCallback:
            return TrainerCallback()

    with pytest.raises(pytest.skip.Exception, match="Define the class at the top of its module"):
        Contract().test_two_processes_train_one_model()


IN_A_FOLDER = """
from trainer.testing import CallbackContract
from trainer_callback import TrainerCallback


class Quiet(TrainerCallback):
    def on_epoch_end(self):
        pass


class TestQuiet(CallbackContract):
    def make(self):
        return Quiet()
"""


def test_a_contract_in_a_folder_that_is_no_package_is_found_by_both(tmp_path: Path) -> None:
    folder = tmp_path / "project" / "tests" / "unit"
    folder.mkdir(parents=True)
    (folder / "test_quiet.py").write_text(IN_A_FOLDER)
    (tmp_path / "project" / "pytest.ini").touch()
    words = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider", "-k", TRAINS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # the folder of the tests is not on the path
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert "1 passed" in done.stdout, done.stdout
