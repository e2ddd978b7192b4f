"""Snapshots and the finished model at a URL, and back from there."""

from .callback import MirrorCallback

__all__ = ["MirrorCallback"]
