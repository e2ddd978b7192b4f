"""Runs of a trainer that are less common: searches, data without a length, other ways of saving."""

import math
import shutil

import pytest

pytest.importorskip("transformers", minversion="5.3")

import torch
import transformers

from trainer.testing import Recorder
from trainer_callback import TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_transformers import Plugins, attach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

CASE = scenarios.Case("a test")


def test_each_trial_of_a_search_for_hyperparameters_is_a_run(tmp_path):
    pytest.importorskip("optuna")
    made = make_trainer(CASE, tmp_path, num_train_epochs=1)
    recorder = Recorder()
    trainer = transformers.Trainer(
        model_init=lambda: scenarios.make_model()[0],
        args=made.args,
        train_dataset=made.train_dataset,
        eval_dataset=made.eval_dataset,
    )
    attach(trainer, [recorder], discover=False)
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.01, 0.1)},
        n_trials=2,
        backend="optuna",
    )
    for hook in ("on_forward_end", "on_backward_end", "on_step_end", "on_batch_end"):
        assert recorder.hooks.count(hook) == 2 * scenarios.BATCHES, hook


def test_a_checkpoint_of_plugins_is_saved_where_only_the_best_are(tmp_path):
    class Asks(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            if epoch == 1:
                trainer.request_snapshot()

    options = {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # gets worse
    trainer = make_trainer(CASE, tmp_path, save_strategy="best", num_train_epochs=4, **options)
    attach(trainer, [Asks(), scenarios.StopAt(15)], discover=False).train()
    found = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert found == {"checkpoint-5", "checkpoint-10", "checkpoint-15"}


def test_the_state_of_a_run_whose_checkpoint_was_written_over_is_not_taken(tmp_path, caplog):
    attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [], discover=False).train()
    make_trainer(CASE, tmp_path, num_train_epochs=1, logging_steps=2).train()  # without plugins
    recorder = Recorder()
    trainer = attach(make_trainer(CASE, tmp_path, num_train_epochs=2), [recorder], discover=False)
    trainer.train(resume_from_checkpoint=True)
    assert "of another run than the rest of the checkpoint" in caplog.text
    assert recorder.of("on_train_start") == [{"resumed": False}]


class Stream(torch.utils.data.IterableDataset):
    """Five batches, without a length."""

    def __iter__(self):
        return iter(scenarios.make_data(0))


def make_streaming(place, **options):
    made = make_trainer(CASE, place, eval_strategy="no", save_strategy="steps", **options)
    model, optimizer = scenarios.make_model()
    return transformers.Trainer(
        model, made.args, train_dataset=Stream(), optimizers=(optimizer, None)
    )


class Epochs(TrainerCallback):
    """Notes where epochs begin and end."""

    def __init__(self):
        self.seen = []

    def on_epoch_start(self, trainer, epoch):
        self.seen.append((epoch, trainer.step))

    def on_epoch_end(self, trainer, epoch, train_loss):
        assert math.isfinite(train_loss)
        self.seen.append((epoch, trainer.step))


def take_part(by_events, trainer, plugins):
    if by_events:
        trainer.add_callback(Plugins(plugins, discover=False))
        return trainer
    return attach(trainer, plugins, discover=False)


@pytest.mark.parametrize("by_events", [False, True])
def test_a_resume_in_data_without_a_length_begins_no_empty_epoch(by_events, tmp_path, caplog):
    take_part(by_events, make_streaming(tmp_path, max_steps=8, save_steps=8), []).train()
    epochs, trainer = Epochs(), make_streaming(tmp_path, max_steps=16, save_steps=20)
    take_part(by_events, trainer, [epochs]).train(resume_from_checkpoint=True)
    assert epochs.seen == [(1, 8), (1, 13), (2, 13), (2, 16)]
    assert "begins it anew, in epoch 1" in caplog.text


@pytest.mark.parametrize("by_events", [False, True])
def test_early_stopping_ends_a_run_at_the_end_of_an_epoch_without_a_length(by_events, tmp_path):
    trainer = make_streaming(tmp_path, max_steps=40, save_steps=50)
    stopping = EarlyStoppingCallback(patience=1, min_delta=100.0, monitor="train_loss")
    take_part(by_events, trainer, [stopping]).train()
    assert trainer.state.global_step == 2 * scenarios.BATCHES


def test_a_resume_with_another_batch_size_stands_where_the_trainer_does(tmp_path):
    trainer = make_trainer(CASE, tmp_path, save_strategy="steps", save_steps=9, num_train_epochs=2)
    attach(trainer, [], discover=False).train()
    recorder = Recorder()
    trainer = make_trainer(CASE, tmp_path, per_device_train_batch_size=scenarios.B // 2)
    attach(trainer, [recorder], discover=False)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    first = next(call for call in recorder.calls if call.hook == "on_batch_start")
    assert (first.epoch, first.arguments["batch_idx"]) == (0, 9)


@pytest.mark.parametrize("copies", [False, True])
def test_best_weights_of_another_folder_are_missed_at_the_start(copies, tmp_path, caplog):
    def train(place, epochs, resume=None):
        trainer = make_trainer(CASE, tmp_path / place, num_train_epochs=epochs)
        stopping = EarlyStoppingCallback(patience=9, min_delta=100.0)
        attach(trainer, [stopping], discover=False).train(resume_from_checkpoint=resume)
        return [each.clone() for each in trainer.model.parameters()]

    best = train("here", 1)
    if copies:
        shutil.copytree(tmp_path / "here/plugins/weights", tmp_path / "there/plugins/weights")
    found = train("there", 2, resume=str(tmp_path / "here/checkpoint-5"))
    assert ("Copy that folder there" in caplog.text) is not copies
    assert all(map(torch.equal, found, best)) is copies


def test_a_validation_without_metrics_is_said_once(tmp_path, caplog):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=2)
    trainer.label_names = ["answers"]  # which no batch has
    attach(trainer, [EarlyStoppingCallback()], discover=False).train()
    assert caplog.text.count("no metrics, not even a loss") == 1


def test_early_stopping_says_that_several_validation_sets_have_no_loss_in_common(tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    trainer.eval_dataset = {name: scenarios.make_data(1, 8) for name in ("a", "b")}
    attach(trainer, [EarlyStoppingCallback()], discover=False)
    with pytest.raises(UsageError, match=r"no val_loss .* watch one of val_a_loss, val_b_loss"):
        trainer.train()
    assert trainer.state.global_step == scenarios.BATCHES


def test_a_checkpoint_whose_writing_was_cut_short_is_refused_by_name(tmp_path):
    attach(make_trainer(CASE, tmp_path, num_train_epochs=2), [], discover=False).train()
    (tmp_path / "checkpoint-10/trainer_state.json").unlink()  # which is written last
    trainer = attach(make_trainer(CASE, tmp_path), [], discover=False)
    with pytest.raises(UsageError, match=r"checkpoint-10 is not .* checkpoint-5 is complete\."):
        trainer.train(resume_from_checkpoint=True)
