"""An exponential moving average of the weights: validated, kept in snapshots, the finished model."""

from .callback import EMACallback

__all__ = ["EMACallback"]
