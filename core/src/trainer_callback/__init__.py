"""The plugin system of the trainer: what a callback is, how it is found, how it is called. Imports
no torch.
"""

from .errors import (
    CallbackError,
    OptionError,
    PluginError,
    ResumeError,
    RunError,
    SaveError,
    SnapshotError,
    StateError,
    UsageError,
)
from .hookspecs import HOOKS, OptionParser, TrainerCallback
from .protocol import TrainerProtocol
from .records import GradientStats, StopRequest
from .specs import hookimpl
from .wording import option_text

__all__ = [
    "HOOKS",
    "CallbackError",
    "GradientStats",
    "OptionError",
    "OptionParser",
    "PluginError",
    "ResumeError",
    "RunError",
    "SaveError",
    "SnapshotError",
    "StateError",
    "StopRequest",
    "TrainerCallback",
    "TrainerProtocol",
    "UsageError",
    "hookimpl",
    "option_text",
]
