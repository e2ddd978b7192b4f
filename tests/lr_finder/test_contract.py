"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_lr_finder import LRFinderCallback


class TestLRFinderCallback(CallbackContract):
    entry_point = "lr_finder"
    flags = ("--lr_finder_steps", "20", "--lr_finder_apply")
    passive = True

    def make(self):
        return LRFinderCallback(steps=20)


class TestApplied(CallbackContract):
    def make(self):
        return LRFinderCallback(1e-5, 10.0, steps=30, smoothing=0.5, apply=True)
