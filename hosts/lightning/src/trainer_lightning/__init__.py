"""The plugins of `trainer-core` in a Lightning Trainer: `Plugins` is one of its callbacks."""

from .callback import Plugins

__all__ = ["Plugins"]
