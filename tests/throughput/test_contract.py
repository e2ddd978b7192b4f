"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_throughput import ThroughputCallback


class TestThroughputCallback(CallbackContract):
    entry_point = "throughput"
    flags = ("--throughput_interval", "2", "--throughput_peak_tflops", "1")
    passive = True
    varying = ("throughput/*", "*.step_ms", "self._watch.*")

    def make(self):
        return ThroughputCallback(interval=2)
