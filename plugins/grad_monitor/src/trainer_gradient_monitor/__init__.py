"""Watches how gradients flow through the layers of a model, in step with its snapshots."""

from .callback import GradientMonitorCallback

__all__ = ["GradientMonitorCallback"]
