"""What a run logs, in trackio."""

from .callback import TrackioCallback

__all__ = ["TrackioCallback"]
