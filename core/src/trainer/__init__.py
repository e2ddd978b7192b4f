"""The trainer. A name is imported when it is first used: the command for plugins needs no torch,
and a pytest session, which loads `trainer.testing`, needs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_callback import plugins

    from .config import ConfigError, TrainerConfig
    from .engine.call_order import RunOrderError
    from .loop import Trainer
    from .result import ModelWeights, TrainResult
    from .run import Run
    from .step.answers import Loss
    from .step.losses import NonFiniteError, default_loss

__all__ = [
    "ConfigError",
    "Loss",
    "ModelWeights",
    "NonFiniteError",
    "Run",
    "RunOrderError",
    "TrainResult",
    "Trainer",
    "TrainerConfig",
    "default_loss",
    "plugins",
]

_LAZY = {
    "ConfigError": "config",
    "Loss": "step.answers",
    "ModelWeights": "result",
    "NonFiniteError": "step.losses",
    "Run": "run",
    "RunOrderError": "engine.call_order",
    "TrainResult": "result",
    "Trainer": "loop",
    "TrainerConfig": "config",
    "default_loss": "step.losses",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "plugins":
        return importlib.import_module("trainer_callback.plugins")
    if name not in _LAZY:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
