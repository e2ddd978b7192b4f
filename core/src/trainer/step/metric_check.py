"""What is handed over as a metric: refused where it is none, before anything is measured."""

from __future__ import annotations

import copy
import pickle
from typing import Final

from trainer_callback.checks import takes
from trainer_callback.errors import show

from ..config import ConfigError
from ..processes.ranks import Ranks
from .merging import is_torchmetric

__all__ = ["check_metric"]

_METHODS: Final = ("update", "compute", "reset")


def check_metric(name: str, metric: object, ranks: Ranks) -> None:
    """Refuses what is no metric, or cannot be one of the run.

    Raises:
        ConfigError: it is.
    """
    way = "Pass a function (outputs, batch) -> one value per item, or an object"
    if isinstance(metric, type):
        raise ConfigError(f"metric {name!r} is the class {metric.__name__}. {way}: an instance.")
    missing = [method for method in _METHODS if not callable(getattr(metric, method, None))]
    if not missing:
        _check_copy(name, metric, ranks)
        if ranks.is_alone or is_torchmetric(metric) or callable(getattr(metric, "merge", None)):
            return
        raise ConfigError(
            f"metric {name!r} has no merge(others), and there are {ranks.world_size} processes, of "
            "which each sees its share. Add a method that takes the others' data in."
        )
    if len(missing) < len(_METHODS) and hasattr(metric, "update"):
        raise ConfigError(
            f"metric {name!r} has no {', no '.join(missing)}. {way} with update, compute and reset."
        )
    if not takes(metric, 2):
        what = "does not take (outputs, batch)" if callable(metric) else f"is {show(metric)}"
        raise ConfigError(f"metric {name!r} {what}. {way} with update, compute and reset.")


def _check_copy(name: str, metric: object, ranks: Ranks) -> None:
    """Each set of a validation has a copy, which goes to other processes as a pickle."""
    try:
        own = copy.deepcopy(metric)
        if not ranks.is_alone:
            pickle.dumps(own)
    except Exception as error:
        raise ConfigError(
            f"metric {name!r} cannot be copied ({type(error).__name__}: {error}), and each "
            "validation set has a copy. Keep in it what copy.deepcopy and, for several processes, "
            "pickle can copy, of a class at the top of a module."
        ) from error
