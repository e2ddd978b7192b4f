"""Plugins of trainer-core in the Hugging Face Trainer."""

from .attach import attach, detach
from .plugins import Plugins

__all__ = ["Plugins", "attach", "detach"]
