"""What a state has to hold so that a run can go on from it: the rules that its reader, its writer
and `trainer snapshot verify` share.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Final

import numpy
import torch

from ..counters import Position

__all__ = ["describe_fault"]

_PARTS: Final[Mapping[str, tuple[type, ...]]] = {
    "model": (dict,),
    "optimizer": (dict,),
    "scheduler": (dict, NoneType),
    "classes": (dict,),
    "scaler": (dict, NoneType),
    "losses": (dict,),
    "loader": (dict, NoneType),
    "rng": (dict,),
    "progress": (dict,),
    "callback_state": (dict,),
}
_COUNTERS: Final[Mapping[str, type]] = {
    "epoch": int,
    "step": int,
    "batch_in_epoch": int,
    "skipped_in_a_row": int,
    "epoch_done": bool,
    "validation_pending": bool,
    "metrics": dict,
    "history": list,
}
_IN_MANIFEST: Final = ("step", "epoch", "epoch_done", "batch_in_epoch")
"""Counters that the manifest has too."""


def describe_fault(state: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
    """Returns what keeps a run from going on from `state`, or None.

    Whether it fits the objects of a run is another question.
    """
    return next(_find_faults(state, manifest), None)


def _find_faults(state: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, kinds in _PARTS.items():
        if name not in state:
            yield f"it has no {name!r}"
        elif not isinstance(state[name], kinds):
            yield f"its {name!r} is a {type(state[name]).__name__}"
    yield from _find_in_progress(state["progress"], manifest)
    yield from _find_in_optimizers(state["optimizer"], state["classes"])
    for key, value in state["callback_state"].items():
        if not isinstance(key, str) or not isinstance(value, dict):
            yield f"its 'callback_state.{key}' is no state of a callback"
    others = state.get("other_ranks", [])
    for part in (state, *others) if isinstance(others, list) else (None,):
        yield from _find_in_own(part)


def _find_in_progress(progress: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in _COUNTERS.items():
        if name not in progress:
            yield f"it has no 'progress.{name}'"
        value: Any = progress[name]
        if type(value) is not kind or (type(value) is int and value < 0):
            yield f"its 'progress.{name}' is {value!r}"
    for name, count in progress.get("skipped", {}).items():
        if type(count) is not int or count < 0:
            yield f"its 'progress.skipped.{name}' is {count!r}"
    if not all(isinstance(entry, dict) for entry in progress["history"]):
        yield "its 'progress.history' is no list of metrics"
    for name in _IN_MANIFEST:
        value = manifest.get(name, progress[name])
        if value != progress[name]:
            yield f"its 'progress.{name}' is {progress[name]}, and {value} in its manifest"
    try:
        Position().load(progress)
    except TypeError as error:
        yield f"its 'progress' cannot be read: {error}"


def _find_in_optimizers(optimizer: Mapping[str, Any], classes: Mapping[str, Any]) -> Iterator[str]:
    """Looks at the only optimizer, or at several by their names."""
    if "param_groups" in optimizer or not all(isinstance(v, dict) for v in optimizer.values()):
        optimizer, classes = {"": optimizer}, {"": classes}
    for key, part in optimizer.items():
        yield from _find_in_optimizer(part)
        for name in ("optimizer", "scheduler"):
            if not isinstance(classes.get(key, {}).get(name), str):
                yield f"its 'classes.{name}' is no name"


def _find_in_optimizer(optimizer: Mapping[str, Any]) -> Iterator[str]:
    groups = optimizer.get("param_groups")
    if not (
        isinstance(optimizer.get("state"), dict)
        and isinstance(groups, list)
        and all(isinstance(each, dict) and isinstance(each.get("params"), list) for each in groups)
    ):
        yield "its 'optimizer' has no 'state' and 'param_groups' as torch's have"


def _find_in_own(part: Any) -> Iterator[str]:
    """Looks at what each process has of its own."""
    if not isinstance(part, dict) or not {"loader", "rng"} <= part.keys():
        yield "it has no 'loader' and 'rng' of one of the processes"
    try:
        rng = part["rng"]
        random.Random().setstate(rng["python"])
        keys, position, has_gauss, gauss = rng["numpy"]
        state = ("MT19937", keys.numpy(), position, has_gauss, gauss)
        numpy.random.RandomState().set_state(state)
        torch.Generator().set_state(rng["torch"])
    except Exception as error:  # each library has its own
        yield f"its 'rng' cannot be restored: {error!r}"
