"""An exponential moving average of the weights: validated, snapshotted, and the finished model."""

from .callback import EMACallback

__all__ = ["EMACallback"]
