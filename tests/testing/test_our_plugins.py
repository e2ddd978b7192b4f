"""The plugins of this project keep to the contract that other authors are held to."""

from __future__ import annotations

from trainer.testing import CallbackContract
from trainer_early_stopping import EarlyStoppingCallback
from trainer_gradient_monitor import GradientMonitorCallback


class TestEarlyStopping(CallbackContract):
    entry_point = "early_stopping"
    flags = ("--early_stop_patience", "2", "--early_stop_baseline", "0.5")

    def make(self) -> EarlyStoppingCallback:
        return EarlyStoppingCallback(patience=2)


class TestEarlyStoppingThatStops(CallbackContract):
    def make(self) -> EarlyStoppingCallback:
        return EarlyStoppingCallback(patience=3, min_delta=9.0)


class TestGradientMonitor(CallbackContract):
    entry_point = "gradient_monitor"
    passive = True
    flags = ("--gradient_monitor_level", "parameter", "--gradient_monitor_include", "*.weight")

    def make(self) -> GradientMonitorCallback:
        return GradientMonitorCallback(report=False)
