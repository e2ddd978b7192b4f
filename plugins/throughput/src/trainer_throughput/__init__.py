"""How fast a run is, and what it waits for."""

from .callback import ThroughputCallback

__all__ = ["ThroughputCallback"]
