"""Sends messages about a run."""

from .callback import NotifyCallback

__all__ = ["NotifyCallback"]
