"""The clause about a callback in other trainers than ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from trainer_callback.discovery import Entry, find_functions
from trainer_callback.errors import text_of

from .clauses import Clauses
from .compare import find_difference
from .host_runs import (
    CUT,
    HostFailureError,
    HostRefusalError,
    note_config_reads,
    play_in,
    train_at_home,
)
from .host_task import HostTask
from .runner import ClauseResult
from .runs import Outcome, fail

__all__ = ["IN_HOSTS", "HostClauses", "describe_hosts"]

IN_HOSTS: Final = "test_it_decides_in_other_trainers_as_here"
_NO_HOSTS: Final = (
    "no other trainer is installed that takes plugins. Install trainer-host-transformers, "
    "trainer-host-lightning, or whatever has an entry point in the group trainer.hosts"
)
_SETTINGS: Final = ("epochs", "log_interval", "max_grad_norm")
_TOLERANCE: Final = 1e-6
"""Of numbers that are logged: some trainers compute the means of a validation in float32."""

_CONFIG: Final = (
    "{rooms} reads trainer.config, which is that of a trainer.Trainer: of another trainer's "
    "settings it has those alone that are called so. Use what every trainer has: "
    "trainer.max_steps, max_epochs, train_batches, max_grad_norm, precision, snapshot_due, "
    "has_validation, hyperparameters."
)
_PROTOCOL: Final = (
    "Decide by the arguments of hooks and the members of TrainerProtocol, which every trainer has, "
    "and not by what only a trainer.Trainer has, calls or writes."
)
_KEEP: Final = (
    "Return what it needs in on_snapshot_save, which is in the checkpoint of every trainer, and "
    "put it back in on_snapshot_load. What lies elsewhere, as in the folder of a snapshot or of "
    "snapshots, is not there when another trainer resumes. What no two runs have in common belongs "
    "into `varying` of this test."
)


class HostClauses(Clauses):
    """A callback is the same in each trainer that takes plugins."""

    @pytest.mark.parametrize("life", ["plain", "resumed"])
    def test_it_decides_in_other_trainers_as_here(self, tmp_path: Path, life: str) -> None:
        hosts = find_functions("trainer.hosts")
        if not hosts:
            pytest.skip(_NO_HOSTS)
        check = self._check_plain if life == "plain" else self._check_resumed
        held, refused, failed = list[str](), list[str](), list[str]()
        for host in hosts:
            try:
                check(host, tmp_path / host.name)
                held.append(host.label)
            except HostRefusalError as refusal:
                text = str(refusal).replace(f"{tmp_path / host.name}/", "")
                refused.append(f"not in {host.label}: {text}")
            except HostFailureError as failure:
                failed.append(f"in {host.label} {failure}")
        if failed:
            fail("\n".join(failed))
        if refused:
            same = [f"the same in {' and '.join(held)}"] if held else []
            pytest.skip("; ".join([*same, *refused]))

    def _check_plain(self, host: Entry, place: Path) -> None:
        """Raises a `HostFailureError` where a run in `host` is not as in our own trainer."""
        home = self._play_at_home(place)
        with note_config_reads() as rooms:
            try:
                found = self._play(_load(host), place)
            except HostFailureError as failure:
                raise HostFailureError(f"{failure}\n{_advise(rooms)}") from failure
        for name, tolerance in (("decisions", _TOLERANCE), ("metrics", _TOLERANCE), ("weights", 0)):
            pair = getattr(home, name), getattr(found, name)
            difference = find_difference(*pair, name, self.varying, tolerance)
            if difference is not None:
                raise HostFailureError(
                    f"it does not do what it does in a trainer.Trainer: {difference}. "
                    f"{_advise(rooms)}"
                )

    def _check_resumed(self, host: Entry, place: Path) -> None:
        """Raises a `HostFailureError` where a run in `host` that was cut and resumed is not as
        one that was left alone.
        """
        train = _load(host)
        whole = self._play(train, place)
        found = self._play(train, place, cut=True)
        difference = whole.find_difference(found, self.varying)
        if difference is not None:
            raise HostFailureError(
                f"a run that was cut after update {CUT} and resumed is not as if it had never "
                f"ended: {difference}. {_KEEP}"
            )

    def _play_at_home(self, place: Path) -> Outcome:
        try:
            return self._play(train_at_home, place)
        except (HostRefusalError, HostFailureError) as error:
            pytest.skip(f"there is nothing to compare, for in a trainer.Trainer: {error}")

    def _play(
        self, train: Callable[[HostTask], None], place: Path, *, cut: bool = False
    ) -> Outcome:
        settings = {name: self.settings[name] for name in _SETTINGS if name in self.settings}
        parts: dict[str, Any] = {"beside": self.beside, "make_model": self.make_model}
        return play_in(train, self.make, place, cut=cut, **parts, **settings)


def describe_hosts(result: ClauseResult | None) -> str:
    """Returns where a callback was found the same as here, in words; `result` is that of the
    clause, None where it is waived.
    """
    if result is None:
        return "not checked, its author has waived that"
    if result.outcome == "passed":
        return f"the same in {' and '.join(host.label for host in find_functions('trainer.hosts'))}"
    return "not the same, see below" if result.outcome == "failed" else result.message


def _load(host: Entry) -> Callable[[HostTask], None]:
    try:
        found: Any = host.load()
    except Exception as error:  # whatever a framework raises that is not whole
        raise HostRefusalError(f"it cannot be imported: {text_of(error)}") from error
    train: Callable[[HostTask], None] = found
    return train


def _advise(rooms: Sequence[str]) -> str:
    return _CONFIG.format(rooms=" and ".join(rooms)) if rooms else _PROTOCOL
