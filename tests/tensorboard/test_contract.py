"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_tensorboard import TensorBoardCallback


class TestTensorBoardCallback(CallbackContract):
    entry_point = "tensorboard"
    flags = ("--tensorboard_histogram_epochs", "2")
    passive = True
    varying = ("files", "self._lengths")

    def make(self):
        return TensorBoardCallback(histogram_epochs=1)
