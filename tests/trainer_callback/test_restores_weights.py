"""`restores_weights`: a plugin says whether it puts other weights into the model at the end."""

import pytest

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.calls.manager import CallbackManager
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback


def find(callback):
    return CallbackManager([callback]).plugins[0].restores_weights


@pytest.mark.parametrize("value", [True, False])
def test_a_plugin_says_what_its_options_are(value):
    assert find(EarlyStoppingCallback(restore_best=value)) is value
    assert find(EMACallback(swap_at_end=value)) is value


def test_others_do_not():
    assert find(TrainerCallback()) is False


def test_it_is_true_or_false():
    class Odd(TrainerCallback):
        restores_weights = "yes"

    with pytest.raises(PluginError, match="restores_weights of Odd must be True or False"):
        CallbackManager([Odd()])
