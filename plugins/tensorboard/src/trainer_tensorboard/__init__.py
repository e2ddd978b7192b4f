"""What a run logs, as TensorBoard shows it."""

from .callback import TensorBoardCallback

__all__ = ["TensorBoardCallback"]
