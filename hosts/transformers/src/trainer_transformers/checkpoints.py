"""The state of plugins in the checkpoints of a trainer, and which run a checkpoint is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from trainer.hosting import (
    STATE_FOLDER,
    HostedRun,
    SavedState,
    read_state_file,
    write_state_file,
)
from trainer_callback import UsageError

__all__ = ["check_complete", "mark_of", "mark_written", "read_state", "write_state"]

_STATE = "trainer_state.json"
"""Where a checkpoint has the history of its run; the last file of it that a trainer writes."""


def check_complete(checkpoint: Path) -> None:
    """Refuses a checkpoint in whose writing a run was killed.

    Raises:
        UsageError: names it, and the newest that is complete.
    """
    if not (checkpoint / STATE_FOLDER).exists() or (checkpoint / _STATE).exists():
        return
    found = [each.parent for each in checkpoint.parent.glob(f"checkpoint-*/{_STATE}")]
    steps = [int(step) for each in found if (step := each.name.rpartition("-")[2]).isdecimal()]
    other = f" checkpoint-{max(steps)} is complete." if steps else ""
    raise UsageError(
        f"{checkpoint} is not complete: it has no {_STATE}, so its writing was cut short. Remove "
        f"it, or resume from another one.{other}"
    )


def mark_of(history: Sequence[Any]) -> str:
    """Returns what tells one run from another: the digest of all that its trainer has logged."""
    return hashlib.sha256(json.dumps(history, default=str, sort_keys=True).encode()).hexdigest()


def mark_written(checkpoint: Path) -> str | None:
    """Returns the mark of the run that has written a checkpoint; None where it has no history."""
    file = checkpoint / _STATE
    return mark_of(json.loads(file.read_text())["log_history"]) if file.exists() else None


def read_state(
    run: HostedRun, checkpoint: Path | None, state: TrainerState, *, strict: bool
) -> SavedState | None:
    """Returns the state of the plugins that all processes have found, or None.

    Raises:
        StateFileError: with `strict`, where it is missing, damaged or of another run.
    """
    if checkpoint is None:
        return None
    saved, fault = None, None
    try:
        step, mark = int(state.global_step), mark_of(state.log_history)
        saved = read_state_file(checkpoint, step, mark=mark, strict=strict)
    except Exception as error:
        fault = error
    everywhere = run.view.ranks.gather((saved is None, fault), "the state of the plugins")
    try:
        for _, raised in everywhere:
            if raised is not None:
                raise raised
        return None if any(is_missing for is_missing, _ in everywhere) else saved
    finally:
        raised = fault = None  # whose traceback has this frame
        everywhere.clear()


def write_state(run: HostedRun, checkpoint: Path, mark: str | None) -> None:
    """Writes the state of the plugins into a checkpoint, in the main process; all have to call it.

    Raises:
        SnapshotError: it could not be written.
    """
    saved = run.collect()
    run.view.ranks.on_main(
        lambda: write_state_file(checkpoint, saved, mark=mark), "the state of the plugins"
    )
