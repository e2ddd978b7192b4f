"""The clause about other trainers, with hosts that are installed here for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.testing import CallbackContract
from trainer.testing.host_clauses import IN_HOSTS, describe_hosts
from trainer.testing.host_runs import play_in, train_at_home
from trainer.testing.runner import ClauseResult, run_clauses
from trainer_callback import TrainerCallback
from trainer_callback.discovery import find_functions

HOSTS = """
from dataclasses import replace
from trainer.testing.host_runs import train_at_home as like_ours
from trainer_callback import TrainerCallback, UsageError


def refusing(task):
    raise UsageError(f"{task.place} has no snapshots")


class Forgets(TrainerCallback):
    def __init__(self, task):
        self.task = task

    def on_train_start(self):
        self.task.callbacks[0].count = 0


def forgetting(task):
    like_ours(replace(task, callbacks=[*task.callbacks, Forgets(task)]))


def longer(task):
    like_ours(replace(task, epochs=4))
"""


class Counter(TrainerCallback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, resumed: bool) -> None:  # type: ignore[override]
        self.count = self.count if resumed else 0

    def on_step_end(self) -> None:  # type: ignore[override]
        self.count += 1

    def on_snapshot_save(self) -> dict[str, object]:  # type: ignore[override]
        return {"count": self.count}

    def on_snapshot_load(self, state: Any) -> None:  # type: ignore[override]
        self.count = state["count"]


class Contract(CallbackContract):
    def make(self) -> Counter:
        return Counter()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the clause beside the named hosts of `HOSTS`, and no others."""

    def run(*names: str) -> ClauseResult:
        info = tmp_path / "dist_hosts-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-hosts\nVersion: 1.0\n")
        entries = [f"{name} = x_hosts:{name}" for name in names]
        (info / "entry_points.txt").write_text("\n".join(["[trainer.hosts]", *entries, ""]))
        (tmp_path / "x_hosts.py").write_text(HOSTS)
        monkeypatch.syspath_prepend(str(tmp_path))
        own = [
            each for each in find_functions("trainer.hosts") if each.distribution == "dist-hosts"
        ]
        monkeypatch.setattr("trainer.testing.host_clauses.find_functions", lambda group: own)
        (found,) = run_clauses(Contract, tmp_path / "runs", only=[IN_HOSTS])
        return found

    return run


def test_without_another_trainer_it_says_which_packages_there_are(check: Any) -> None:
    found = check()
    assert found.outcome == "skipped"
    assert "trainer-host-transformers, trainer-host-lightning" in found.message
    assert describe_hosts(found) == found.message


def test_a_trainer_that_does_what_ours_does_is_named(check: Any) -> None:
    found = check("like_ours")
    assert found.outcome == "passed"
    assert describe_hosts(found) == "the same in like_ours (dist-hosts 1.0)"


def test_a_refusal_is_named_beside_what_holds(check: Any) -> None:
    found = check("like_ours", "refusing", "missing")
    assert found.outcome == "skipped"
    assert found.message.startswith("the same in like_ours (dist-hosts 1.0); not in missing (dist")
    assert "it cannot be imported: " in found.message
    assert found.message.endswith("refusing (dist-hosts 1.0): run has no snapshots")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("longer", "does not do what it does in a trainer.Trainer: decisions.epochs is 4 instead"),
        ("forgetting", "resumed is not as if it had never ended: state.count is 5 instead of 9"),
    ],
)
def test_another_trainer_that_differs_fails_it(check: Any, name: str, words: str) -> None:
    found = check("like_ours", name)
    assert found.outcome == "failed"
    assert words in found.message
    assert found.message.startswith(f"in {name} (dist-hosts 1.0) ")
    assert describe_hosts(found) == "not the same, see below"


class Stateless(TrainerCallback):
    """Others in its run have a state, such as the file of metrics."""

    def on_snapshot_save(self) -> None: ...


@pytest.mark.parametrize(("make", "state"), [(Counter, {"count": 9}), (Stateless, None)])
def test_the_state_that_is_compared_is_that_of_the_callback(
    make: Any, state: object, tmp_path: Path
) -> None:
    assert play_in(train_at_home, make, tmp_path).state == state
