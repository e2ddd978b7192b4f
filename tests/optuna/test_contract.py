"""The contract that every callback keeps."""

import optuna

from trainer.testing import CallbackContract
from trainer_optuna import OptunaCallback


class TestOptunaCallback(CallbackContract):
    entry_point = "optuna"
    flags = ("--optuna_monitor", "train_loss")
    passive = True

    def make(self):
        return OptunaCallback(optuna.create_study().ask())


class TestAtValidations(CallbackContract):
    passive = True

    def make(self):
        return OptunaCallback(optuna.create_study().ask(), report_at="validation")
