"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_ema import EMACallback


class TestEMACallback(CallbackContract):
    entry_point = "ema"
    flags = ("--ema_decay", "0.5")

    def make(self):
        return EMACallback(decay=0.5)
