"""Traces of chosen updates by torch.profiler."""

from .callback import ProfilerCallback

__all__ = ["ProfilerCallback"]
