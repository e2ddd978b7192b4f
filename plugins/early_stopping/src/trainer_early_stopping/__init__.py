"""Early stopping for the trainer: ends a run that no longer improves, restores the best weights."""

from .callback import EarlyStoppingCallback

__all__ = ["EarlyStoppingCallback"]
