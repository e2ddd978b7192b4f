"""`Plugins`: an ordinary callback, which does what events allow and refuses the rest."""

import copy
import json
import pickle
import shutil

import pytest

pytest.importorskip("transformers", minversion="5.6")

import torch
import transformers

from trainer_callback import StopRequest, TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_throughput import ThroughputCallback
from trainer_transformers import Plugins, attach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

CASE = scenarios.Case("a test", window=2, clip=0.5, epochs=8)


def make_plugins():
    return [
        EarlyStoppingCallback(patience=1, min_delta=0.02),
        GradientMonitorCallback(monitor_interval=1),
    ]


def train(place, by_events, *, case=CASE, resume=None, entries=make_plugins, **options):
    trainer, ends = make_trainer(case, place, **options), scenarios.Ends()
    if by_events:
        trainer.add_callback(Plugins([*entries(), ends], discover=False))
    else:
        attach(trainer, [*entries(), ends], discover=False)
    trainer.train(resume_from_checkpoint=resume)
    return scenarios.summarise(ends.result, trainer.model, place / "plugins", 0)


def test_they_decide_measure_and_restore_as_with_attach(tmp_path):
    ours, theirs = train(tmp_path / "a", False), train(tmp_path / "b", True)
    for name in ("end", "weights", "files", "kept"):
        assert not list(scenarios.differences(ours[name], theirs[name])), name
    assert ours["end"][0] == "stopped"
    assert ours["files"]["gradient_flow/gradients.jsonl"]
    found = [{**entry, "train_loss": 0} for entry in theirs["history"]]
    assert found == [{**entry, "train_loss": 0} for entry in ours["history"]]


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path):
    whole, place = train(tmp_path / "whole", True), tmp_path / "cut"
    train(place, True, num_train_epochs=2)
    shutil.rmtree(place / "checkpoint-6")
    found = train(place, True, resume=str(place / "checkpoint-3"))
    assert not list(scenarios.differences(whole["end"], found["end"]))
    assert found["weights"] == whole["weights"]
    assert found["files"] == whole["files"]


def test_the_training_loss_is_the_mean_of_what_the_trainer_logs(tmp_path):
    found = train(tmp_path, True, num_train_epochs=1)
    logged = [json.loads(line) for line in (tmp_path / "plugins/metrics.jsonl").open()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert len(losses) == 3
    assert found["history"][0]["train_loss"] == pytest.approx(sum(losses) / 3)


def test_the_limit_of_the_norm_is_the_trainers_own_again_afterwards(tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    trainer.add_callback(Plugins(make_plugins(), discover=False))
    trainer.train()
    assert trainer.args.max_grad_norm == 0.5


@pytest.mark.parametrize(
    ("plugin", "named"),
    [
        (EMACallback, "the start of a validation, which ema needs"),
        (ThroughputCallback, "throughput needs"),
    ],
)
def test_a_plugin_that_needs_more_is_refused_and_attach_is_named(plugin, named, tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    trainer.add_callback(Plugins([plugin()], discover=False))
    with pytest.raises(UsageError, match=named) as caught:
        trainer.train()
    assert "trainer_transformers.attach" in str(caught.value)
    assert trainer.state.global_step == 0


def test_a_plugin_that_changes_the_structure_is_refused_at_a_resume(tmp_path):
    class Adds(TrainerCallback):
        def on_setup(self):
            pass

    train(tmp_path, True, entries=lambda: [Adds()], num_train_epochs=1)
    with pytest.raises(UsageError, match="the time before the optimizer is restored"):
        train(tmp_path, True, entries=lambda: [Adds()], resume=True)


def test_a_run_that_plugins_had_ended_says_that_it_makes_one_update_more(tmp_path, caplog):
    class Stops(TrainerCallback):
        def should_stop_training(self, trainer):
            return StopRequest("enough") if trainer.step >= 3 else None

    train(tmp_path, True, entries=lambda: [Stops()])
    found = train(tmp_path, True, entries=lambda: [Stops()], resume=True)
    assert found["end"][:2] == ("stopped", "enough")
    assert "one more update" in caplog.text


def test_a_checkpoint_elsewhere_is_not_mistaken_for_one_of_the_same_update_here(tmp_path, caplog):
    there, here = tmp_path / "there", tmp_path / "here"
    train(there, True, num_train_epochs=1)
    train(here, True, num_train_epochs=1, logging_steps=3)
    train(here, True, num_train_epochs=2, resume=str(there / "checkpoint-3"))
    assert "of another run than the rest of the checkpoint" in caplog.text


class Boom(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            raise ConnectionError("boom")


def test_the_arguments_are_the_trainers_own_in_a_checkpoint_and_behind_an_exception(tmp_path):
    train(tmp_path / "a", True, num_train_epochs=1)
    file = tmp_path / "a/checkpoint-3/training_args.bin"
    saved = torch.load(file, weights_only=False)  # an object, of this test's own bytes
    assert saved.max_grad_norm == 0.5
    trainer = make_trainer(CASE, tmp_path / "b")
    trainer.add_callback(Plugins(make_plugins(), discover=False))
    trainer.add_callback(Boom())
    with pytest.raises(ConnectionError):
        trainer.train()
    assert trainer.args.max_grad_norm == 0.5


def test_a_training_behind_one_that_an_exception_has_ended_has_the_folder(tmp_path):
    ends, first = scenarios.Ends(), make_trainer(CASE, tmp_path)
    first.add_callback(Plugins([ends], discover=False))
    first.add_callback(Boom())
    with pytest.raises(ConnectionError):
        first.train()
    train(tmp_path, True, num_train_epochs=1)
    assert (ends.result.status, ends.result.steps) == ("failed", 2)


def test_two_of_them_in_one_trainer_are_refused(tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    for _ in range(2):
        trainer.add_callback(Plugins([], discover=False))
    with pytest.raises(UsageError, match="two of them in this trainer"):
        trainer.train()


def test_they_are_refused_beside_attach(tmp_path):
    trainer = attach(make_trainer(CASE, tmp_path), [], discover=False)
    trainer.add_callback(Plugins([], discover=False, output_dir=tmp_path / "other"))
    with pytest.raises(UsageError, match="has Plugins among its callbacks"):
        trainer.train()


def test_they_are_copied_and_pickled_behind_a_run(tmp_path):
    plugins, trainer = Plugins(make_plugins(), discover=False), make_trainer(CASE, tmp_path)
    trainer.add_callback(plugins)
    trainer.train()
    pickle.dumps(copy.deepcopy(plugins))


def test_several_validation_sets_are_refused_and_attach_is_named(tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    trainer.eval_dataset = {name: scenarios.make_data(1, 8) for name in ("a", "b")}
    trainer.add_callback(Plugins(make_plugins(), discover=False))
    with pytest.raises(UsageError, match=r"several sets .*trainer_transformers\.attach"):
        trainer.train()


def test_an_evaluation_under_another_name_is_no_validation(tmp_path):
    class Tests(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            trainer.evaluate(scenarios.make_data(5, 8), metric_key_prefix="test")

    class Validated(TrainerCallback):
        calls = 0

        def on_validation_end(self):
            self.calls += 1

    validated, trainer = Validated(), make_trainer(CASE, tmp_path, num_train_epochs=2)
    trainer.add_callback(Plugins([validated], discover=False))
    trainer.add_callback(Tests())
    trainer.train()
    assert validated.calls == 2


@pytest.mark.parametrize("saves", ["no", "epoch"])
def test_an_epoch_ends_whose_validation_another_callback_calls_off(saves, tmp_path):
    class CallsOff(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            control.should_evaluate = False

    class Epochs(TrainerCallback):
        ended = 0

        def on_epoch_end(self):
            self.ended += 1

        def on_snapshot_save(self):
            return {"ended": self.ended}

        def on_snapshot_load(self, state):
            assert state == {"ended": 2}

    for entry, epochs in ((Epochs(), 2), (Epochs(), 3)):
        trainer = make_trainer(CASE, tmp_path, num_train_epochs=epochs, save_strategy=saves)
        trainer.add_callback(Plugins([entry], discover=False))
        trainer.add_callback(CallsOff())
        resumes = saves == "epoch" and epochs == 3
        trainer.train(resume_from_checkpoint=resumes or None)
        assert entry.ended == (1 if resumes else epochs)
