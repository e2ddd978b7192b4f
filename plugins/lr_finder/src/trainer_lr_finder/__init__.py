"""Looks for a learning rate before the run begins."""

from .callback import LRFinderCallback

__all__ = ["LRFinderCallback"]
