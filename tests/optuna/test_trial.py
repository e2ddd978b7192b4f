"""What a trial is told, when a run is pruned, and what is refused."""

import math

import optuna
import pytest
import torch

from trainer_callback import TrainerCallback, UsageError
from trainer_optuna import OptunaCallback


class Seen(TrainerCallback):
    def __init__(self):
        self.losses, self.result = [], None

    def on_validation_end(self, trainer, metrics):
        self.losses.append((trainer.step, metrics["val_loss"]))

    def on_train_end(self, result):
        self.result = result


def test_each_epoch_is_reported_by_its_number(make, study):
    trial, seen = study.ask(), Seen()
    make(OptunaCallback(trial), seen).train()
    found = study.trials[0].intermediate_values
    assert found == {epoch: loss for epoch, (_, loss) in enumerate(seen.losses)}
    assert len(found) == 3


def test_each_validation_is_reported_by_its_update(make, study):
    trial, seen = study.ask(), Seen()
    make(OptunaCallback(trial, report_at="validation"), seen, eval_interval=3).train()
    assert study.trials[0].intermediate_values == dict(seen.losses)
    assert [*study.trials[0].intermediate_values] == [3, 4, 6, 8, 9, 12]


def test_a_pruned_run_ends_by_the_exception_of_optuna(make, pruning_study, tmp_path):
    study, seen = pruning_study(1), Seen()
    study.optimize(
        lambda trial: (
            make(OptunaCallback(trial), seen, output_dir=tmp_path / "run").train().val_loss
        ),
        n_trials=1,
    )
    (trial,) = study.trials
    assert trial.state is optuna.trial.TrialState.PRUNED
    assert trial.value == seen.losses[-1][1]
    assert [*trial.intermediate_values] == [0, 1]
    assert (seen.result.status, seen.result.stop_reason) == ("stopped", "TrialPruned")
    assert seen.result.stop_detail == f"val_loss {trial.value:.6g} at step 1"
    assert not (tmp_path / "run" / "final").exists()


def test_the_trial_knows_its_run_and_its_best_value(make, study, tmp_path):
    trial, seen = study.ask(), Seen()
    callback = OptunaCallback(trial)
    make(callback, seen, output_dir=tmp_path / "run").train()
    attributes = study.trials[0].user_attrs
    assert attributes["output_dir"] == str(tmp_path / "run")
    assert len(attributes["run_id"]) == 12
    assert attributes["hyperparameters"]["optimizer.lr"] == 0.1
    assert attributes["best_value"] == callback.best == min(loss for _, loss in seen.losses)


def test_the_best_value_is_the_highest_where_the_study_maximizes(make):
    study = optuna.create_study(direction="maximize")
    trial, seen = study.ask(), Seen()
    callback = OptunaCallback(trial)
    make(callback, seen).train()
    assert callback.best == max(loss for _, loss in seen.losses)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # numpy, in the pruner
def test_nan_is_reported_and_the_pruner_decides(make):
    class NotANumber(TrainerCallback):
        logs_metrics = ("score",)

        def on_validation_end(self, trainer):
            trainer.log({"score": math.nan})

    study = optuna.create_study(pruner=optuna.pruners.PercentilePruner(50, n_startup_trials=0))
    first = study.ask()
    first.report(1.0, 0)
    study.tell(first, 1.0)
    trial = study.ask()
    callback = OptunaCallback(trial, "score")
    with pytest.raises(optuna.TrialPruned, match="score nan at step 0"):
        make(NotANumber(), callback).train()
    assert math.isnan(study.trials[1].intermediate_values[0])
    assert callback.best is None


def test_a_metric_that_the_run_will_not_have_is_refused_before_the_first_step(make, study):
    with pytest.raises(
        UsageError, match=r"no metric 'val_los'\. Did you mean 'val_loss'"
    ) as caught:
        make(OptunaCallback(study.ask(), "val_los")).train()
    assert "train_loss" in str(caught.value)


def test_a_metric_that_nobody_logs_ends_the_run_at_the_first_report(make, study):
    class SaysNothing(TrainerCallback):
        def on_epoch_start(self, trainer):
            pass

    with pytest.raises(
        UsageError, match="by the end of the first epoch there is no metric 'score'"
    ):
        make(SaysNothing(), OptunaCallback(study.ask(), "score")).train()
    assert study.trials[0].intermediate_values == {}


def test_a_metric_without_a_new_value_is_not_reported_again(make, study):
    class Seldom(TrainerCallback):
        logs_metrics = ("score",)

        def on_epoch_end(self, trainer, epoch):
            if epoch != 1:
                trainer.log({"score": float(epoch)})

    make(OptunaCallback(study.ask(), "score"), Seldom()).train()
    assert study.trials[0].intermediate_values == {0: 0.0, 2: 2.0}


def test_a_run_without_a_trial_is_refused(make):
    with pytest.raises(UsageError, match=r"there is no trial\. Write OptunaCallback"):
        make(OptunaCallback()).train()


def test_a_study_of_several_objectives_is_refused(make):
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(UsageError, match="the study has 2 objectives"):
        make(OptunaCallback(study.ask())).train()


def test_a_fixed_trial_runs_to_its_end(make):
    trial = optuna.trial.FixedTrial({"rate": 0.1})
    result = make(OptunaCallback(trial), rate=trial.suggest_float("rate", 0, 1)).train()
    assert result.status == "finished"


def test_a_trial_that_is_tried_again_hears_of_every_step_once(make, tmp_path, recwarn):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="again")
    whole = study.ask()
    make(OptunaCallback(whole), output_dir=tmp_path / "whole").train()

    killed = study.ask()
    place = tmp_path / "killed"
    make(OptunaCallback(killed), output_dir=place, max_steps=6, snapshot_interval=2).train()
    again = optuna.load_study(storage=storage, study_name="again").ask()
    make(OptunaCallback(again), output_dir=place, snapshot_interval=2).train(resume=True)

    trials = optuna.load_study(storage=storage, study_name="again").trials
    assert trials[2].intermediate_values == trials[0].intermediate_values
    assert not [each for each in recwarn if "already reported" in str(each.message)]


def test_values_that_a_trial_has_inherited_stay(make, study, tmp_path):
    make(OptunaCallback(study.ask()), output_dir=tmp_path / "run", max_steps=4).train()
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING, intermediate_values={0: 5.0, 1: 6.0}
        )
    )
    again = study.ask()
    make(OptunaCallback(again), output_dir=tmp_path / "run").train(resume=True)
    found = study.trials[1].intermediate_values
    assert (found[0], found[1], len(found)) == (5.0, 6.0, 3)


def test_another_metric_after_a_resume_starts_afresh(make, study, tmp_path, caplog):
    make(OptunaCallback(study.ask()), output_dir=tmp_path / "run", max_steps=4).train()
    trial = study.ask()
    make(OptunaCallback(trial, "train_loss"), output_dir=tmp_path / "run").train(resume=True)
    assert [*study.trials[1].intermediate_values] == [1, 2]
    assert "val_loss was reported before the resume, and train_loss is now" in caplog.text


def test_weights_are_those_of_a_run_without_it(make, study):
    alone, beside = make(), make(OptunaCallback(study.ask()))
    alone.train()
    beside.train()
    assert torch.equal(alone.model.weight, beside.model.weight)
