"""The contract that every callback keeps."""

from trainer.testing import CallbackContract
from trainer_profiler import ProfilerCallback


class TestProfilerCallback(CallbackContract):
    entry_point = "profiler"
    flags = ("--profiler_wait", "2", "--profiler_with_stack")
    passive = True
    varying = ("profiler/operators",)

    def make(self):
        return ProfilerCallback(wait=1, warmup=1, active=2, repeat=2)
