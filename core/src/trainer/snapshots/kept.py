"""What the user's own loop has to keep, beside models and optimizers: a replay buffer, an
environment, a counter.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_callback import SnapshotError

from ..config import ConfigError
from ..step.parts import with_article

__all__ = ["check_kept", "load_kept", "read_kept"]

logger: logging.Logger = logging.getLogger("trainer")


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
    """Returns name -> state."""
    return {name: thing.state_dict() for name, thing in kept.items()}


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
            thing.load_state_dict(copy.deepcopy(saved[name]))
        except Exception as error:
            raise SnapshotError(
                f"{path}: {name!r} does not take its state back: {error!r}. Build it as the run "
                "that wrote it did."
            ) from error
