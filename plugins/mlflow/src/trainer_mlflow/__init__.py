"""What a run logs, in MLflow."""

from .callback import MLflowCallback

__all__ = ["MLflowCallback"]
