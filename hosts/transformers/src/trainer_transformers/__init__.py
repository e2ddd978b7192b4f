"""Plugins of trainer-core in the Hugging Face Trainer."""

from .attach import attach, detach
from .plugins import Plugins
from .theirs import FromTransformers

__all__ = ["FromTransformers", "Plugins", "attach", "detach"]
