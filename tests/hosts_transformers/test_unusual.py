"""Runs of a trainer that are less common: searches, data without a length, other ways of saving."""

import pytest

pytest.importorskip("transformers", minversion="5.3")

import transformers

from trainer.testing import Recorder
from trainer_callback import TrainerCallback
from trainer_transformers import attach

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
