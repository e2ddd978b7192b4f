"""What a person reads in the log."""

import logging
import re

import pytest

from trainer_early_stopping import EarlyStoppingCallback


@pytest.fixture
def log(make_trainer, caplog):
    """Plays a list of losses through the Trainer and returns the lines of early stopping."""
    caplog.set_level(logging.INFO)

    def log(losses, *, config=None, resume=False, **options):
        caplog.clear()
        trainer = make_trainer(losses, [EarlyStoppingCallback(**options)], **(config or {}))
        trainer.train(resume=resume)
        return [r.message for r in caplog.records if r.name == "trainer.early_stopping"]

    return log


def test_the_first_line_says_what_is_watched_and_when_it_can_stop_in_epochs(log):
    assert log([1.0] * 9, patience=3, min_delta=0.25)[0] == (
        "early stopping watches val_loss (lower is better) and ends the run after 3 checks "
        "in a row without an improvement of more than 0.25: at the earliest after 4 epochs."
    )


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"patience": 1}, 2),
        ({"patience": 5}, 6),
        ({"patience": 2, "start_from_epoch": 3}, 6),
        ({"patience": 2, "min_epochs": 8}, 8),
        ({"patience": 2, "baseline": 0.5}, 2),
        ({"patience": 2, "check_on": "epoch"}, 3),
    ],
)
def test_a_run_that_never_improves_ends_at_the_earliest_epoch_that_was_announced(
    log, make_trainer, options, epochs
):
    assert f"at the earliest after {epochs} epochs." in log([1.0] * 9, **options)[0]
    assert make_trainer([1.0] * 9, [EarlyStoppingCallback(**options)]).train().epochs == epochs


def test_the_first_line_knows_the_least_epochs_of_the_trainer(log):
    assert "at the earliest after 7 epochs." in log([1.0], patience=2, config={"min_epochs": 7})[0]


def test_the_first_line_after_a_resume_counts_from_there(log, tmp_path):
    config = {"output_dir": tmp_path}
    log([1.0, 0.5, 0.6], patience=4, config=config)
    lines = log([1.0, 0.5, 0.6, 0.6], patience=4, config=config, resume=True)
    assert "at the earliest after 6 epochs." in lines[0]


def test_the_first_line_names_what_can_stop_the_run_at_once(log):
    options = {"stopping_threshold": 0.1, "check_finite": True, "start_from_epoch": 2}
    assert log([1.0] * 9, **options)[0].endswith(
        "at the earliest after 8 epochs, by stopping_threshold or check_finite after 3 epochs."
    )


def test_the_first_line_counts_checks_where_an_epoch_has_several(log):
    config = {"batches": 2, "eval_interval": 1, "epochs": 1}
    assert log({1: 1.0, 2: 1.0}, patience=4, config=config)[0].endswith(
        "at the earliest after 5 checks (one every 1 updates and at each epoch's end)."
    )


def test_one_line_per_improvement(log):
    lines = log([1.0, 0.5, 0.75, 0.25, 0.25], patience=3, restore_best=False)
    assert lines[1:] == [
        "early stopping: val_loss 1 in epoch 0, update 1, is the best so far.",
        "early stopping: val_loss 0.5 in epoch 1, update 2, is the best so far (before: 1).",
        "early stopping: val_loss 0.25 in epoch 3, update 4, is the best so far (before: 0.5).",
    ]


def test_a_best_that_does_not_beat_the_baseline_says_so(log):
    lines = log([1.0, 0.5], baseline=0.75, restore_best=False)
    assert "does not beat the baseline 0.75" in lines[1]
    assert "baseline" not in lines[2]


@pytest.mark.parametrize(
    ("losses", "options", "line"),
    [
        ([0.5, 1, 2], {"patience": 2}, "patience: val_loss 2 in epoch 2 is miss 2 in a row"),
        (
            [0.5, 0.1],
            {"stopping_threshold": 0.2},
            "stopping_threshold: val_loss 0.1 in epoch 1 is better than 0.2",
        ),
        (
            [0.5, 3],
            {"divergence_threshold": 2},
            "divergence_threshold: val_loss 3 in epoch 1 is worse than 2.0",
        ),
        (
            [0.5, float("nan")],
            {"check_finite": True},
            "non_finite: val_loss nan in epoch 1 is not finite",
        ),
    ],
)
def test_one_line_per_stop_with_reason_value_and_epoch(log, losses, options, line):
    stops = [each for each in log([*losses, 0.0], **options) if "ends the run:" in each]
    assert len(stops) == 1
    assert re.search(f"{re.escape(line)}; the best was 0\\.[15] in epoch [01]\\.$", stops[0])


def test_a_stop_that_the_trainer_puts_off_is_still_one_line(log):
    lines = log([1.0] * 8, patience=2, config={"min_epochs": 7})
    assert sum("ends the run:" in line for line in lines) == 1


def test_the_result_of_the_run_names_the_reason_and_the_callback(make_trainer):
    result = make_trainer([1.0, 2.0, 3.0], [EarlyStoppingCallback(patience=1)]).train()
    assert (result.status, result.stop_reason) == ("stopped", "patience")
    assert result.stopped_by in ("EarlyStoppingCallback", "early_stopping")
    assert result.stop_detail == (
        "val_loss 2 in epoch 1 is miss 1 in a row; the best was 1 in epoch 0."
    )


def test_one_line_names_epoch_and_value_of_what_was_restored(log):
    assert log([1.0, 0.5, 0.75], patience=1)[-1] == (
        "early stopping restored the weights of epoch 1 (val_loss 0.5) from memory."
    )


def test_the_best_being_the_last_is_said(log):
    assert log([1.0, 0.5])[-1] == (
        "early stopping loads nothing: the last weights are the best, epoch 1 (val_loss 0.5)."
    )


def test_a_run_without_a_best_is_said(log):
    assert log([float("nan")] * 2)[-1] == (
        "early stopping saw no best val_loss: the last weights stay."
    )


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"patience": 5}, 6),
        ({"patience": 1, "start_from_epoch": 3}, 5),
        ({"patience": 1, "min_epochs": 20}, 20),
        ({"patience": 9, "check_finite": True, "min_epochs": 4}, 10),
    ],
)
def test_a_run_that_is_too_short_to_be_stopped_is_told_once(log, caplog, options, epochs):
    line = log([1.0] * 4, **options)[0]
    assert f"at the earliest after {epochs} epochs" in line
    end = (
        "This run has 4 epochs, so early stopping cannot end it; it only restores the best weights."
    )
    assert line.endswith(end)
    warned = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1


@pytest.mark.parametrize("options", [{"patience": 2}, {"patience": 9, "check_finite": True}])
def test_a_run_that_can_be_stopped_is_no_warning(log, caplog, options):
    log([1.0] * 4, **options)
    assert "cannot end it" not in caplog.text


def test_a_margin_of_no_amount_is_told_to_have_no_effect(log):
    assert any(
        "min_delta_mode rel has no effect" in line for line in log([1.0], min_delta_mode="rel")
    )


def test_a_run_that_ends_before_the_first_check_is_told(log):
    line = log([1.0] * 2, start_from_epoch=2)[0]
    assert line.endswith("This run has 2 epochs, so early stopping cannot end it.")
