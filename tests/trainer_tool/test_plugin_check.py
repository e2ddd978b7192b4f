"""`trainer plugins check`: the level of an installed plugin, and what is in the way of the next."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from trainer.testing.level import InstalledContract
from trainer.testing.runner import run_clauses
from trainer_tool.cli import main
from trainer_tool.plugin_check import check

SOUND = '''
"""One that is right."""
from trainer_callback import TrainerCallback


class Sound(TrainerCallback):
    """Counts.

    Args:
        interval: updates between two looks
    """

    contract = {"waived_clauses": {"it_keeps_no_batches": "it is a test"}}

    def __init__(self, interval: int = 2) -> None:
        self.interval = interval

    def on_epoch_end(self) -> None:
        pass
'''

TORCH = SOUND.replace("from trainer_callback", "import torch\nfrom trainer_callback")
UNTYPED = SOUND.replace("interval: int = 2", "interval=2")
SILENT = SOUND.replace("        interval: updates between two looks\n", "")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a plugin called NAME of one module, which this process and others can import."""

    def write(name: str, source: str) -> None:
        info = tmp_path / f"trainer_plugin_{name}-1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: trainer-plugin-{name}", "Version: 1.0"]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        entry = f"[trainer.callbacks]\n{name} = trainer_{name}:Sound\n"
        (info / "entry_points.txt").write_text(entry)
        (tmp_path / f"trainer_{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts some processes that import torch
def test_a_sound_plugin_is_gold(install, capsys: pytest.CaptureFixture[str]) -> None:
    install("sound", SOUND)
    assert main(["plugins", "check", "sound", "--require", "gold", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["level"], found["suffices"]) == ("gold", True)
    outcomes = {each["clause"]: each["outcome"] for each in found["clauses"]}
    assert outcomes["test_two_processes_train_one_model"] == "passed"
    assert outcomes["test_it_takes_less_than_a_hundredth_of_an_update"] == "passed"
    assert outcomes["test_it_keeps_no_batches"] == "waived"


@pytest.mark.parametrize(
    ("name", "source", "clause", "words"),
    [
        (
            "heavy",
            TORCH,
            "its_import_is_quick_and_needs_no_torch",
            "trainer_heavy:Sound imports ",
        ),
        ("untyped", UNTYPED, "its_options_have_types_and_help", "'interval' has no type"),
        ("silent", SILENT, "its_options_have_types_and_help", "--silent_interval has no help"),
    ],
)
def test_what_keeps_a_plugin_from_bronze_is_named(
    install, tmp_path: Path, name: str, source: str, clause: str, words: str
) -> None:
    from trainer.testing.level import InstalledContract
    from trainer.testing.runner import run_clauses

    install(name, source)
    only = ["test_its_import_is_quick_and_needs_no_torch", "test_its_options_have_types_and_help"]
    results = run_clauses(lambda: InstalledContract(name), tmp_path / "runs", only)
    failures = {each.clause: each.message for each in results if each.outcome == "failed"}
    assert [*failures] == [f"test_{clause}"]
    assert words in failures[f"test_{clause}"]


NEEDY = SOUND.replace("interval: int = 2", "interval: int")
DECLARED = "contract = {"


@pytest.mark.parametrize(
    ("name", "declared", "interval"),
    [
        ("flagged", """"flags": ("--flagged_interval", "7"), """, 7),
        ("made", """"make": lambda: Sound(8), """, 8),
    ],
)
def test_a_plugin_that_needs_options_says_which_the_check_takes(
    install, name: str, declared: str, interval: int
) -> None:
    from trainer.testing.level import InstalledContract

    install(name, NEEDY.replace(DECLARED, DECLARED + declared))
    assert InstalledContract(name).make().interval == interval
    asked = InstalledContract(name, [f"--{name}_interval", "3"])
    assert asked.make().interval == 3
    again = pickle.loads(pickle.dumps(asked))  # as it comes to two other processes
    assert again.make().interval == 3


def test_what_no_contract_knows_is_refused(install) -> None:
    from trainer.testing.level import InstalledContract
    from trainer_callback import UsageError

    install("chatty", SOUND.replace(DECLARED, DECLARED + """"makes": 3, """))
    with pytest.raises(UsageError, match=r"contract has 'makes'. It may have passive, .*make"):
        InstalledContract("chatty")


def test_a_callback_that_takes_time_in_every_third_update_is_not_gold(tmp_path: Path) -> None:
    import time

    from trainer.testing.cost import measure_share
    from trainer_callback import TrainerCallback

    class Sleepy(TrainerCallback):
        def on_step_end(self, trainer) -> None:
            if trainer.step % 3 == 0:
                time.sleep(0.1)

    class Quick(TrainerCallback):
        def on_step_end(self) -> None:
            pass

    slow, where = measure_share(Sleepy, tmp_path / "slow")
    assert slow > 0.02
    assert where.startswith("on_step_end")
    assert measure_share(Quick, tmp_path / "quick")[0] < 0.01


def test_options_that_the_plugin_does_not_have_are_refused(install) -> None:
    from trainer_callback import UsageError

    install("unknowing", SOUND)
    with pytest.raises(UsageError, match="--flags: unrecognized arguments: --nonsense"):
        check("unknowing", "--nonsense 3", "bronze")
    with pytest.raises(UsageError, match="No closing quotation"):
        check("unknowing", "'", "bronze")


def test_a_plugin_that_is_not_installed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "nowhere"]) == 2
    assert "no plugin 'nowhere' is installed" in capsys.readouterr().err


BRINGS = """
from trainer_callback import TrainerCallback


class Hooks:
    def on_counted(self, trainer, count): ...


class Sound(TrainerCallback):
    hookspecs = Hooks
    state_key = "brings"

    def on_step_end(self, trainer) -> None:
        trainer.hook.on_counted(trainer=trainer, count=trainer.step)
"""
HEARS = """
from trainer_callback import TrainerCallback


class Sound(TrainerCallback):
    contract = {"beside": ("brings",)}
    count = 0

    def on_counted(self, count) -> None:
        assert count
        self.count += 1
"""
NEEDS_RELU = """
from trainer_callback import TrainerCallback, UsageError


def make_model():
    from torch import nn

    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


class Sound(TrainerCallback):
    contract = {"make_model": make_model}

    def on_train_start(self, trainer) -> None:
        if not any(type(each).__name__ == "ReLU" for each in trainer.model.modules()):
            raise UsageError("no ReLU")
"""
MAKES = """
from trainer_callback import TrainerCallback, hookimpl


class Made(TrainerCallback):
    def on_epoch_end(self) -> None:
        pass


class Maker:
    @hookimpl
    def make_callbacks(self, options):
        return [Made()]


Sound = Maker()
"""
PROCESSES = (
    "test_two_killed_processes_go_on_as_if_nothing_had_happened",
    "test_two_processes_train_one_model",
)
MANNERS = (
    "test_a_second_run_of_the_same_object_starts_clean",
    "test_it_survives_a_run_of_one_batch",
)
LATER = "test_a_killed_run_goes_on_as_if_nothing_had_happened"
COST = "test_it_takes_less_than_a_hundredth_of_an_update"
HOOKS = "test_its_hooks_and_their_arguments_exist"


def find_outcomes(name: str, place: Path, *clauses: str) -> dict[str, str]:
    results = run_clauses(lambda: InstalledContract(name), place, clauses)
    return {each.clause: each.message or each.outcome for each in results}


def test_a_callback_of_foreign_hooks_is_checked_beside_the_plugin_that_brings_them(
    install, tmp_path: Path
) -> None:
    install("brings", BRINGS)
    install("hears", HEARS)
    found = find_outcomes("hears", tmp_path / "runs", HOOKS, LATER, MANNERS[0], MANNERS[1])
    assert "self.count is " in found.pop(MANNERS[0])  # so it has been called
    assert "self.count is " in found.pop(LATER)
    assert found == {HOOKS: "passed", MANNERS[1]: "passed"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "clauses",
    [
        pytest.param(MANNERS, id="in_one_process"),
        pytest.param((LATER, *PROCESSES, COST), id="all_of_gold", marks=pytest.mark.slow),
    ],
)
def test_a_callback_that_needs_certain_modules_is_checked_with_a_model_that_has_them(
    install, tmp_path: Path, clauses: tuple[str, ...]
) -> None:
    install("relu", NEEDS_RELU)
    found = find_outcomes("relu", tmp_path / "runs", *clauses)
    assert found == dict.fromkeys(clauses, "passed")


def test_a_plugin_that_makes_its_callbacks_itself_is_found(install, tmp_path: Path) -> None:
    install("makes", MAKES)
    found = find_outcomes("makes", tmp_path / "runs", "test_its_distribution_is_found")
    assert set(found.values()) == {"passed"}


def test_one_reason_for_many_clauses_is_printed_once() -> None:
    from trainer_tool.plugin_report import _write_check

    clauses = [
        {"clause": f"test_{name}", "level": "silver", "outcome": "failed", "message": why}
        for name, why in [("a", "it refuses"), ("b", "other"), ("c", "it refuses")]
    ]
    found = {"name": "x", "distribution": "y", "version": "1", "level": "none", "clauses": clauses}
    assert _write_check({**found, "hosts": "the same in z"}) == (
        "x (y 1): below bronze, 0 clauses hold\n\n"
        "silver: a\nsilver: c\n  it refuses\n\nsilver: b\n  other\n\n"
        "in other trainers: the same in z\n"
    )
