"""What a run logs, in Weights & Biases."""

from .callback import WandbCallback

__all__ = ["WandbCallback"]
