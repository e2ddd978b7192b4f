"""Whether a run will have the metric that is watched, as far as is known before the first step."""

from __future__ import annotations

import difflib
import logging
from fnmatch import fnmatchcase
from typing import Final

from trainer_callback import TrainerProtocol, option_text
from trainer_callback.errors import closest

from .options import PREFIX

__all__ = ["find_fault"]

logger: Final = logging.getLogger("trainer.early_stopping")

_ANY: Final = "*"
_AT_THE_END: Final = ("restored_*",)
"""What early stopping logs itself, when there is nothing left to stop."""
_NOT_KNOWN: Final = (
    "early stopping watches %s, which is none of the metrics that are known now.%s They are %s. A "
    "callback that logs it can say so by logs_metrics."
)


def find_fault(monitor: str, trainer: TrainerProtocol) -> tuple[str, str] | None:
    """Returns where the metric is missing, and what to do, if the run cannot have it. Where a
    callback may log it, which does not say what it logs, a misspelt name gets a warning.
    """
    names = getattr(trainer, "metric_names", None)
    if names is None:
        return None
    known = sorted(each for each in names if each not in (_ANY, *_AT_THE_END))
    if any(monitor == each or fnmatchcase(monitor, each) for each in known):
        return None
    question, listed = closest(monitor, known), ", ".join(known)
    was_logged = monitor in trainer.metrics  # before a resume
    if _ANY in names or was_logged:
        is_near = bool(difflib.get_close_matches(monitor, known, n=1, cutoff=0.8))
        if _ANY not in names if was_logged else is_near:
            logger.warning(_NOT_KNOWN, monitor, question, listed)
        return None
    lax = option_text("strict", False, PREFIX)
    where = f"among the metrics that this run will have.{question}".removesuffix(".")
    return where, f"watch one of {listed}, or use {lax} where something else logs it"
