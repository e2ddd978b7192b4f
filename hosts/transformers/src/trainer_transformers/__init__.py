"""Plugins of trainer-core in the Hugging Face Trainer."""

from .attach import attach, detach

__all__ = ["attach", "detach"]
