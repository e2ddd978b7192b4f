"""The test kit for authors of callbacks: a contract to inherit, two fixtures, a recorder.

    from trainer.testing import CallbackContract

    class TestMyCallback(CallbackContract):
        def make(self):
            return MyCallback()

Imports nothing until a name is used: pytest loads this package in every session of every user.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import CallbackContract
    from .host_task import HostTask
    from .recorder import Call, Recorder
    from .tiny import TinyTrainer, make_tiny_trainer

__all__ = ["Call", "CallbackContract", "HostTask", "Recorder", "TinyTrainer", "make_tiny_trainer"]

_ROOMS = {
    "Call": "recorder",
    "CallbackContract": "contract",
    "HostTask": "host_task",
    "Recorder": "recorder",
    "TinyTrainer": "tiny",
    "make_tiny_trainer": "tiny",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _ROOMS:
        raise AttributeError(f"module 'trainer.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
