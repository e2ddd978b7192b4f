"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_notify import NotifyCallback


class TestNotifyCallback(CallbackContract):
    entry_point = "notify"
    flags = ("--notify_every_epochs", "2", "--notify_at_best")
    passive = True
    varying = ("self._begun",)

    def make(self):
        return NotifyCallback("json://127.0.0.1:9")  # nobody listens there
