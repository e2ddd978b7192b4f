"""What the constructor takes, what it refuses, and which flags come of it."""

import math
import subprocess
import sys

import pytest

from trainer_callback.command_line.options import read_options
from trainer_early_stopping import EarlyStoppingCallback

SPECIFIED = {
    "patience": 5,
    "min_delta": 0.0,
    "min_delta_mode": "abs",
    "restore_best": True,
    "monitor": "val_loss",
    "mode": "auto",
    "check_on": "validation",
    "start_from_epoch": 0,
    "min_epochs": 0,
    "baseline": None,
    "stopping_threshold": None,
    "divergence_threshold": None,
    "check_finite": False,
    "strict": True,
    "on_resume_stopped": "stop",
    "state_key": None,
}


def test_every_option_is_a_flag_with_its_default_and_a_help_line():
    options = read_options(EarlyStoppingCallback, prefix=EarlyStoppingCallback.option_prefix)
    assert {option.parameter: option.default for option in options} == SPECIFIED
    assert [option.flag for option in options] == [f"early_stop_{name}" for name in SPECIFIED]
    assert all(option.help for option in options)


def test_every_option_is_a_plain_attribute():
    callback = EarlyStoppingCallback()
    assert {name: getattr(callback, name) for name in SPECIFIED} == {**SPECIFIED, "mode": "min"}


@pytest.mark.parametrize("patience", [0, -1, 2.5, 5.0, True, "5", None, math.nan])
def test_patience_must_be_a_whole_number_of_at_least_1(patience):
    with pytest.raises(ValueError, match=r"patience must be .*Use patience=1"):
        EarlyStoppingCallback(patience=patience)


@pytest.mark.parametrize("min_delta", [-1e-9, math.inf, math.nan, "0.1", True, None])
def test_min_delta_must_be_finite_and_not_negative(min_delta):
    with pytest.raises(ValueError, match=r"min_delta must be .* Use min_delta=0"):
        EarlyStoppingCallback(min_delta=min_delta)


@pytest.mark.parametrize("name", ["start_from_epoch", "min_epochs"])
@pytest.mark.parametrize("value", [-1, 1.5, False])
def test_a_number_of_epochs_must_be_a_whole_number_of_at_least_0(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        EarlyStoppingCallback(**{name: value})


@pytest.mark.parametrize("name", ["baseline", "stopping_threshold", "divergence_threshold"])
@pytest.mark.parametrize("value", [math.nan, "0.5", True])
def test_a_threshold_must_be_a_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number"):
        EarlyStoppingCallback(**{name: value})


@pytest.mark.parametrize("name", ["min_delta_mode", "mode", "check_on", "on_resume_stopped"])
def test_an_unknown_choice_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'never'"):
        EarlyStoppingCallback(**{name: "never"})


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        *[(name, "min") for name in ("val_loss", "train_loss", "error", "word_error_rate")],
        *[(name, "min") for name in ("perplexity", "val_ppl", "nll", "bpb", "Val/Loss")],
        *[(name, "max") for name in ("acc", "val_accuracy", "f1", "macro_F1", "bleu", "auc")],
        *[(name, "min") for name in ("accented/val_loss", "val_mse", "b/RMSE", "mae", "wer")],
        *[(name, "max") for name in ("errors/f1", "val_iou", "auroc", "r2", "a/b/dice")],
        *[(name, "max") for name in ("val_precision", "loss/recall", "noisy/accuracy")],
    ],
)
def test_auto_tells_the_mode_from_the_name(monitor, mode):
    assert EarlyStoppingCallback(monitor=monitor).mode == mode


@pytest.mark.parametrize("monitor", ["reward", "", "loss_of_accuracy", "power", "loss/reward"])
def test_a_name_that_does_not_tell_the_mode_is_refused(monitor):
    with pytest.raises(ValueError, match="Use mode='min' or mode='max'"):
        EarlyStoppingCallback(monitor=monitor)
    assert EarlyStoppingCallback(monitor=monitor or "x", mode="max").mode == "max"


def test_importing_the_plugin_imports_no_torch():
    code = "import sys, trainer_early_stopping; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
