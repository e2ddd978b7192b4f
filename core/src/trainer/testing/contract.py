"""What every callback has to keep to, one test for each clause."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.calls.implementation import brings_hooks, describe
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.command_line.describing import describe_apart
from trainer_callback.plugins import SLOW_IMPORT

from .batch_clauses import BatchClauses
from .compare import find_difference
from .host_clauses import HostClauses
from .installed import find_plugin, read_group, read_options
from .runs import (
    Outcome,
    build,
    fail,
    fresh,
    make_others,
    play,
    read_state,
    train,
    train_if_it_suits,
)
from .tidy import TidyClauses
from .together import TogetherClauses
from .watch import Bystander, DiskCopy, StateWatch

__all__ = ["CallbackContract"]


class CallbackContract(BatchClauses, TidyClauses, TogetherClauses, HostClauses):
    """Tests of a callback, to be inherited by a class whose name starts with `Test`.

        class TestMyCallback(CallbackContract):
            entry_point = "my_callback"
            passive = True

            def make(self):
                return MyCallback(interval=2)

    Attributes:
        passive: it watches and changes nothing: a run with it ends in the same weights, bit by bit.
        entry_point: its name in the group `trainer.callbacks`; None for code that is not installed.
        flags: more words of the command line for `train-lm --ENTRY_POINT`, if it needs or has any.
        settings: fields of `TrainerConfig` for the runs, beside those of the contract. What a
            clause is about (snapshots, length of the run, where it writes) the clause sets itself.
        varying: glob patterns of the metrics, attributes and entries of the state that no two runs
            have in common, such as times.
        changes_batches: it changes batches in place, as one that mixes or masks them does.
        beside: names of installed plugins that are in each run, too, such as the one whose hooks
            this implements.
        waived_clauses: clause -> the reason why it does not hold for this callback; it is skipped
            with the reason. A clause is the name of its test, with or without `test_`.
    """

    def test_it_builds_from_its_defaults(self) -> None:
        first, second = self.make(), self.make()
        if isinstance(first, ModuleType):
            return
        if isinstance(first, type):
            fail(f"make() returns the class {first.__name__}. Write {first.__name__}().")
        if first is second:
            fail(
                "make() returns the same object twice, so one run would see the state of another. "
                "Make a new one each time."
            )

    def test_its_hooks_and_their_arguments_exist(self) -> None:
        callback = self.make()
        try:
            manager = CallbackManager([callback, *make_others(self.beside)])
        except PluginError as error:
            fail(str(error))
        name = next(each.name for each in manager.plugins if each.callback is callback)
        found = any(name in manager.implementers(hook) for hook in manager.used)
        if not found and not brings_hooks(callback) and isinstance(callback, TrainerCallback):
            fail(f"{describe(callback)} overrides no hook, so nothing would ever call it.")

    def test_it_survives_a_run_of_one_batch(self, tmp_path: Path) -> None:
        settings = self._settings(epochs=1, batches=1)
        train(build([fresh(self.make)], tmp_path / "run", **settings))
        settings.update(snapshot_interval=None, snapshot_epochs=False)
        train_if_it_suits(self.make, None, **settings)

    def test_it_survives_a_run_without_validation(self, tmp_path: Path) -> None:
        settings = self._settings(epochs=1, eval_interval=None, validation=False)
        train_if_it_suits(self.make, tmp_path / "run", **settings)

    def test_a_second_run_of_the_same_object_starts_clean(self, tmp_path: Path) -> None:
        callback = fresh(self.make)
        settings = self._settings(snapshot_interval=2)
        outcomes: list[Outcome] = []
        for _ in ("first", "second"):
            outcomes.append(play(lambda: callback, tmp_path / "run", used=True, **settings))
            shutil.rmtree(tmp_path / "run")
        difference = outcomes[0].find_difference(outcomes[1], self.varying)
        if difference is not None:
            fail(
                f"the second run of the same object is not as the first: {difference}. Set back in "
                "on_train_start(resumed=False) what changes during a run."
            )

    def test_it_survives_a_run_without_updates(self, tmp_path: Path) -> None:
        place = tmp_path / "run"
        settings = self._settings(epochs=1, batches=1)
        train(build([], place, **settings))
        for _ in ("installed after the run", "resumed with its own state"):
            train(build([fresh(self.make)], place, **settings), resume=True)

    def test_its_state_is_plain_data(self, tmp_path: Path) -> None:
        watch, callback = StateWatch(), fresh(self.make)
        trainer = build([watch, callback], tmp_path / "run", **self._settings(snapshot_interval=2))
        train(trainer, unsaveable=fail)
        if watch.problem is not None:
            fail(
                f"on_snapshot_load would not get back what on_snapshot_save returned: "
                f"{watch.problem}. Return None, bool, int, float, str, bytes, list, tuple, set, "
                "dict and tensors only."
            )
        read_state(trainer, callback)

    @pytest.mark.parametrize(
        "cuts",
        [(2,), (3,), (6,), (11,), (2, 4)],
        ids=["mid_epoch", "boundary", "late_boundary", "behind_ten_updates", "twice"],
    )
    def test_a_killed_run_goes_on_as_if_nothing_had_happened(
        self, tmp_path: Path, cuts: tuple[int, ...]
    ) -> None:
        place, left = tmp_path / "run", tmp_path / "left"
        settings = self._settings(snapshot_interval=cuts[0])
        outcomes: list[Outcome] = []
        for step in cuts:
            copy = DiskCopy(step, left)
            outcomes.append(play(self.make, place, resume=bool(outcomes), also=[copy], **settings))
            if outcomes[-1].decisions["steps"] <= step:
                pytest.skip(f"it ends the run at or before update {step}")
            shutil.rmtree(place)
            left.rename(place)
        part = play(self.make, place, resume=True, **settings)
        self._compare(outcomes[0], part, f"killed after update {' and '.join(map(str, cuts))}")

    def test_an_ended_run_goes_on_as_if_it_had_not_ended(self, tmp_path: Path) -> None:
        settings = self._settings(snapshot_interval=2)
        whole = play(self.make, tmp_path / "run", **settings)
        shutil.rmtree(tmp_path / "run")
        first = play(self.make, tmp_path / "run", **{**settings, "max_steps": 4})
        if first.decisions["status"] != "finished" or whole.decisions["steps"] <= 4:
            pytest.skip("it ends the run at or before update 4")
        part = play(self.make, tmp_path / "run", resume=True, **settings)
        self._compare(whole, part, "ended by max_steps after update 4")

    def test_a_passive_callback_changes_nothing(self, tmp_path: Path) -> None:
        if not self.passive:
            pytest.skip("it is not said to be passive")
        settings = self._settings(snapshot_interval=2)
        without, beside = Bystander(), Bystander()
        train(build([without], tmp_path / "without", **settings))
        train(build([beside, fresh(self.make)], tmp_path / "beside", **settings))
        change = without.find_change(beside)
        if change is not None:
            fail(f"passive = True, and the run is another one with it than without: {change}.")

    def test_its_distribution_is_found(self) -> None:
        plugin = find_plugin(self._entry_point())
        made = self.make()
        makes_others = any(each.hook == "make_callbacks" for each in plugin.implementations)
        if made is not plugin.target and type(made) is not plugin.target and not makes_others:
            fail(f"{plugin.label} is {plugin.target!r}, and make() returns {made!r}.")
        if not plugin.entry.version:
            fail(f"{plugin.label} has no version.")

    def test_its_import_is_quick_and_needs_no_torch(self) -> None:
        plugin = find_plugin(self._entry_point())
        found = next(describe_apart([plugin.entry])).description
        if not found.brings_torch and found.seconds > SLOW_IMPORT:  # the machine may be busy
            found = next(describe_apart([plugin.entry])).description
        if found.brings_torch or found.seconds > SLOW_IMPORT:
            what = "torch" if found.brings_torch else f"what takes {found.seconds:.1f} s"
            fail(
                f"{plugin.entry.value} imports {what}, and every command that uses it waits for "
                "that. Import what takes long inside of the hooks, or under `if TYPE_CHECKING:`."
            )

    def test_its_options_have_types_and_help(self) -> None:
        plugin = find_plugin(self._entry_point())
        for option in plugin.options:
            if not option.help:
                fail(
                    f"--{option.flag} has no help. Describe {option.parameter!r} below `Args:` in "
                    "the docstring of the class."
                )
        if isinstance(plugin.target, type):
            parameters = inspect.signature(plugin.target).parameters
            bare = [o for o in plugin.options if not _is_typed(parameters.get(o.parameter))]
            if bare:
                fail(
                    f"{bare[0].parameter!r} has no type, so --{bare[0].flag} takes any text. "
                    f"Annotate it, such as {bare[0].parameter}: int."
                )

    def test_its_flags_stand_in_a_group_of_their_own(self) -> None:
        plugin = find_plugin(self._entry_point())
        group, text = read_group(plugin)
        if plugin.kind == "flag":
            wanted = [*(f"--{option.flag}" for option in plugin.options)]
            missing = [flag for flag in wanted if flag not in group]
            if missing or not group:
                fail(
                    f"train-lm --help has no {' '.join(missing) or 'flag'} in a group called "
                    f"{plugin.label!r}. It has:\n{text}"
                )

    def test_its_flags_survive_a_config_file(self, tmp_path: Path) -> None:
        plugin = find_plugin(self._entry_point())
        words = [f"--{plugin.entry.name}"] if plugin.kind == "flag" else []
        place = ["--output_dir", str(tmp_path / "run")]
        typed, text = read_options([*words, *self.flags, *place])
        file = tmp_path / "run.yaml"
        file.write_text(text)
        reread, _ = read_options([], config=file)
        difference = find_difference(typed, reread, "the options")
        if difference is not None:
            fail(f"after --print_config and --config, {difference}.")

    def _compare(self, whole: Outcome, part: Outcome, when: str) -> None:
        difference = whole.find_difference(part, self.varying)
        if difference is not None:
            fail(
                f"a run that was {when} and resumed is not as if it had never ended: {difference}. "
                "Return what it needs in on_snapshot_save, put it back in on_snapshot_load, and "
                "do not reset it in on_train_start(resumed=True). What no two runs have in common "
                "belongs into `varying` of this test."
            )


def _is_typed(parameter: inspect.Parameter | None) -> bool:
    return parameter is None or parameter.annotation is not parameter.empty
