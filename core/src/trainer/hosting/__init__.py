"""A run of somebody else's trainer, as callbacks see it: the hooks, the state, the files.

A host is whatever loop calls the hooks. One that is not ours drives its loop, its optimizer and its
checkpoints itself, and tells a `HostedRun` what it does.
"""

from .choice import make_callbacks
from .hosted import Decision, HostedRun
from .state import STATE_FOLDER, SavedState, StateFileError, read_state_file, write_state_file
from .view import HostedView

__all__ = [
    "STATE_FOLDER",
    "Decision",
    "HostedRun",
    "HostedView",
    "SavedState",
    "StateFileError",
    "make_callbacks",
    "read_state_file",
    "write_state_file",
]
