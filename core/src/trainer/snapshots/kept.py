"""What the user's own loop has to keep, beside models and optimizers: a replay buffer, an
environment, a counter.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy
import torch

from trainer_callback import SnapshotError, StateError

from ..config import ConfigError
from ..step.parts import with_article

__all__ = ["check_kept", "load_kept", "read_kept"]

logger: logging.Logger = logging.getLogger("trainer")

_SCALARS: Final = (bool, int, float, str, bytes)
_KIND: Final = "<kind>"
"""The key that says what stands beside it."""
_MAKE: Final[Mapping[str, Callable[[Any], Any]]] = {
    "deque": lambda parts: deque(*parts),
    "frozenset": frozenset,
    "Counter": Counter,
    "Path": Path,
    "ndarray": lambda tensor: tensor.numpy(),
    "number": lambda tensor: tensor.numpy()[()],
}


def check_kept(name: object, thing: object, kept: Mapping[str, Any]) -> None:
    """Refuses what cannot be kept beside what is `kept` already.

    Raises:
        ConfigError: it has no `state_dict` and `load_state_dict`, or the name is taken.
    """
    if not isinstance(name, str) or not name or name in kept:
        raise ConfigError(
            f"keep: the name must be a str that nothing else has, got {name!r}. There is "
            f"{', '.join(kept) or 'none yet'}."
        )
    methods = ("state_dict", "load_state_dict")
    if isinstance(thing, type) or not all(callable(getattr(thing, each, None)) for each in methods):
        raise ConfigError(
            f"keep: {name!r} is {with_article(type(thing))} and has no state_dict() and "
            "load_state_dict(state). Give it both; the first returns plain data and tensors."
        )


def read_kept(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Returns name -> state, in which what is no plain data says what it was.

    Raises:
        StateError: it holds what would come back as something else; it names the path to it.
    """
    return {name: _pack(thing.state_dict(), f"keep({name!r})") for name, thing in kept.items()}


def load_kept(kept: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Gives each thing that is `kept` its state of the snapshot at `path`.

    Raises:
        SnapshotError: one does not take it back.
    """
    for name in saved.keys() - kept.keys():
        logger.warning(
            "%s has the state of %r, which this run does not keep: it is lost. Call "
            "run.keep(%r, ...) before run.start.",
            *(path, name, name),
        )
    for name, thing in kept.items():
        if name not in saved:
            logger.warning("%s has no state of %r: it starts fresh.", path, name)
            continue
        try:
            thing.load_state_dict(_unpack(copy.deepcopy(saved[name])))
        except Exception as error:
            raise SnapshotError(
                f"{path}: {name!r} does not take its state back: {error!r}. Build it as the run "
                "that wrote it did."
            ) from error


def _pack(value: Any, path: str) -> Any:
    """Returns `value` with a mapping in the place of what is no plain data: what it was, and plain
    data that it can be made of.
    """
    kind = type(value)
    if value is None or kind in _SCALARS or isinstance(value, torch.Tensor):
        return value
    if kind in (list, tuple, deque):
        items: Any = [_pack(each, f"{path}[{i}]") for i, each in enumerate(value)]
        return {_KIND: "deque", "of": [items, value.maxlen]} if kind is deque else kind(items)
    if kind in (set, frozenset):
        for each in value:
            _check_plain(each, f"an element of {path}")
        return value if kind is set else {_KIND: "frozenset", "of": [*value]}
    if kind in (dict, OrderedDict, Counter) and _KIND not in value:
        for key in value:
            _check_plain(key, f"the key {key!r} of {path}")
        found = {key: _pack(each, f"{path}.{key}") for key, each in value.items()}
        return {_KIND: "Counter", "of": found} if kind is Counter else found
    if isinstance(value, Path):
        return {_KIND: "Path", "of": str(value)}
    if (kind is numpy.ndarray or isinstance(value, numpy.generic)) and value.dtype.kind in "biufc":
        name = "ndarray" if kind is numpy.ndarray else "number"
        return {_KIND: name, "of": numpy.array(value)}
    raise _refuse(value, path)


def _check_plain(value: Any, path: str) -> None:
    """Refuses, of what is in a set or a key of a dict, what would come back as something else."""
    if type(value) is tuple:
        for each in value:
            _check_plain(each, path)
    elif value is not None and type(value) not in _SCALARS:
        raise _refuse(value, path)


def _refuse(value: object, path: str) -> StateError:
    return StateError(
        f"{path} is {with_article(type(value))}, which a resume would not give back as it was. Let "
        "state_dict() return plain data, tensors and arrays, and make the rest of them in "
        "load_state_dict()."
    )


def _unpack(value: Any) -> Any:
    """Returns what `_pack` was given."""
    if isinstance(value, dict) and _KIND in value:
        return _MAKE[value[_KIND]](_unpack(value["of"]))
    if isinstance(value, dict):
        return {key: _unpack(each) for key, each in value.items()}
    return type(value)(map(_unpack, value)) if isinstance(value, (list, tuple)) else value
