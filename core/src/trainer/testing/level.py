"""The level of an installed plugin: how much of the contract it keeps."""

from __future__ import annotations

import argparse
import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from torch import nn

from trainer_callback import UsageError
from trainer_callback.discovery import Entry
from trainer_callback.plugins import InstalledPlugin, discover

from .contract import CallbackContract
from .cost import measure_share
from .host_clauses import IN_HOSTS, describe_hosts
from .runner import ClauseResult, run_clauses
from .runs import fail

__all__ = ["LEVELS", "InstalledContract", "LevelReport", "find_level"]

LEVELS: Final = ("none", "bronze", "silver", "gold")

_BRONZE: Final = frozenset(
    {
        "test_its_distribution_is_found",
        "test_its_flags_stand_in_a_group_of_their_own",
        "test_its_flags_survive_a_config_file",
        "test_its_import_is_quick_and_needs_no_torch",
        "test_its_options_have_types_and_help",
    }
)
_GOLD: Final = frozenset(
    {
        "test_a_killed_run_goes_on_as_if_nothing_had_happened",
        "test_an_ended_run_goes_on_as_if_it_had_not_ended",
        IN_HOSTS,
        "test_it_takes_less_than_a_hundredth_of_an_update",
        "test_only_the_main_process_writes",
        "test_two_killed_processes_go_on_as_if_nothing_had_happened",
        "test_two_processes_train_one_model",
    }
)
"""Clauses of a level; all the others are silver."""

_DECLARED: Final = (
    *("passive", "changes_batches", "varying", "settings", "waived_clauses"),
    *("beside", "make_model"),  # what is in each run, too
    *("flags", "make"),  # how it is built, where nobody says it on the command line
)
_FUNCTIONS: Final = ("make", "make_model")
"""Those that another process reads again, since it cannot be sent functions."""

_SHARE: Final = 0.01


class InstalledContract(CallbackContract):
    """The contract of an installed plugin, whose callback the command line makes. What its test
    class would say of it stands in `contract`, a mapping in its class or module; so do `make`, a
    function without arguments, of a callback that no command line can make, and `make_model`.
    """

    def __init__(self, name: str, flags: Sequence[str] = ()) -> None:
        """Builds the callback once.

        Raises:
            UsageError: there is no callback with these flags, or `contract` says what no contract
                knows.
        """
        declared = _read_declared(_load(name))
        self._is_asked = bool(flags)
        words = tuple(flags) or tuple(declared.get("flags", ()))
        own = {key: value for key, value in declared.items() if key not in _FUNCTIONS}
        vars(self).update(own, entry_point=name, flags=words)
        self.make()

    def make(self) -> object:
        make = _read_declared(_load(str(self.entry_point))).get("make")
        if make is not None and not self._is_asked:
            return make()
        new = secrets.token_hex(4)  # for what belongs to one run, as the place of an upload
        flags = tuple(each.replace("{new}", new) for each in self.flags)
        return _make(str(self.entry_point), flags)

    def make_model(self) -> nn.Module | None:
        make_model = _read_declared(_load(str(self.entry_point))).get("make_model")
        return None if make_model is None else make_model()

    def test_it_takes_less_than_a_hundredth_of_an_update(self, tmp_path: Path) -> None:
        share, where = measure_share(self.make, tmp_path, self.make_model, self.beside)
        if share >= _SHARE:
            fail(
                f"it takes {share:.1%} of an update ({where}), and a level of gold allows "
                f"{_SHARE:.0%}. Do less in hooks of the batch, or do it every so many updates."
            )


@dataclass(frozen=True)
class LevelReport:
    """What was found of a plugin.

    Attributes:
        entry: which plugin.
        level: one of `LEVELS`.
        results: level -> the results of its clauses.
        waived: clause -> why its author says that it does not count.
        hosts: what was found in other trainers, for people.
    """

    entry: Entry
    level: str
    results: Mapping[str, Sequence[ClauseResult]]
    waived: Mapping[str, str]
    hosts: str


def find_level(name: str, flags: Sequence[str], place: Path) -> LevelReport:
    """Returns the level of the installed plugin `name`.

    Args:
        flags: options of the plugin, as on the command line of `train-lm`.
        place: an empty folder for the runs.

    Raises:
        UsageError: it cannot be built with `flags`.
    """
    contract = InstalledContract(name, flags)
    waived = contract.read_waived()
    clauses = {each for each in dir(contract) if each.startswith("test_")} - waived.keys()
    results: dict[str, list[ClauseResult]] = {each: [] for each in LEVELS[1:]}
    for result in run_clauses(lambda: InstalledContract(name, flags), place, clauses):
        results[_level_of(result.clause)].append(result)
    level = "none"
    for each in LEVELS[1:]:
        if any(result.outcome == "failed" for result in results[each]):
            break
        level = each
    found = next((each for each in results["gold"] if each.clause == IN_HOSTS), None)
    return LevelReport(_load(name).entry, level, results, waived, describe_hosts(found))


def _level_of(clause: str) -> str:
    return "bronze" if clause in _BRONZE else "gold" if clause in _GOLD else "silver"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"--flags: {message}.")


@functools.lru_cache(maxsize=1)
def _load(name: str) -> InstalledPlugin:
    plugin = next((each for each in discover() if each.entry.is_called(name)), None)
    if plugin is None or plugin.problem is not None:
        raise UsageError(f"{name}: {plugin.problem if plugin else 'is not installed'}")
    return plugin


def _read_declared(plugin: InstalledPlugin) -> Mapping[str, Any]:
    """Returns the plugin's `contract`.

    Raises:
        UsageError: it has what no contract knows.
    """
    declared: Mapping[str, Any] = getattr(plugin.target, "contract", {})
    unknown = [each for each in declared if each not in _DECLARED]
    if unknown:
        raise UsageError(
            f"{plugin.label}: contract has {unknown[0]!r}. It may have {', '.join(_DECLARED)}."
        )
    return declared


def _make(name: str, flags: tuple[str, ...]) -> object:
    """Returns the callback that the plugin makes of `flags`.

    Raises:
        UsageError: it makes none, or several.
    """
    plugin = _load(name)
    parser = _Parser(add_help=False, allow_abbrev=False)
    plugin.group.join(parser)
    own = [f"--{plugin.entry.flag}"] if plugin.kind == "flag" else []
    made = plugin.make_callbacks(parser.parse_args([*own, *flags]))
    if len(made) != 1:
        raise UsageError(
            f"{plugin.label} makes {len(made)} callbacks of these options, and a check is of one. "
            'Give its options, such as --flags "--NAME VALUE".'
        )
    callback: object = made[0].callback
    return callback
