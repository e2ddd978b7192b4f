"""The plugin system of the trainer: what a callback is, how it is found, how it is called. Imports
no torch.
"""

from typing import Any, Final

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
from .hookspecs import HOOKS, TrainerCallback
from .outbox import Outbox, Tracker
from .protocol import TrainerProtocol
from .records import CallbackInfo, GradientStats, LogRecord, StopRequest
from .specs import OptionParser, hookimpl, hookspec
from .tracker_process import TrackerProcess, serve_tracker
from .tracking import TrackerCallback
from .wording import option_text

__all__ = [
    "HOOKS",
    "SPEC_VERSION",
    "CallbackError",
    "CallbackInfo",
    "GradientStats",
    "LogRecord",
    "OptionError",
    "OptionParser",
    "Outbox",
    "PluginError",
    "ResumeError",
    "RunError",
    "SaveError",
    "SnapshotError",
    "StateError",
    "StopRequest",
    "Tracker",
    "TrackerCallback",
    "TrackerProcess",
    "TrainerCallback",
    "TrainerProtocol",
    "UsageError",
    "__version__",
    "hookimpl",
    "hookspec",
    "option_text",
    "serve_tracker",
]

SPEC_VERSION: Final[tuple[int, int]] = (1, 1)
"""Version of what plugins are promised: hooks, their arguments, the members of `trainer`, and the
attributes of `TrainerCallback`. The second number is raised by an addition, the first by whatever
an older plugin might not survive.
"""

__version__: str
"""Version of the distribution `trainer-core`; read when it is asked for."""


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .discovery import find_version

    return find_version("trainer-core")
