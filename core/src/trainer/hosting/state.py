"""The state of the callbacks inside a host's checkpoint: a folder of its own, written and checked
as a snapshot is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer_callback import ResumeError, SnapshotError

from ..snapshots.manifest import MANIFEST
from ..snapshots.snapshot import write_snapshot
from ..snapshots.state_file import STATE, load_state, save_state

__all__ = ["STATE_FOLDER", "SavedState", "StateFileError", "read_state_file", "write_state_file"]

logger: logging.Logger = logging.getLogger("trainer")

STATE_FOLDER: Final = "plugins"
"""Its name in a checkpoint."""


class StateFileError(ResumeError):
    """The state of callbacks in a checkpoint is missing, damaged or of another update or run."""


@dataclass(frozen=True)
class SavedState:
    """What `HostedRun.collect` has collected: plain data and tensors.

    Attributes:
        step: the update behind which it was.
        state: what `HostedRun.open` goes on from.
        writers: state key -> who wrote its state.
        source: where it was found, for messages.
    """

    step: int
    state: Mapping[str, Any]
    writers: Mapping[str, Any]
    source: str = "the checkpoint"

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain data, for a host that keeps the state of callbacks itself."""
        return {"step": self.step, "state": dict(self.state), "writers": dict(self.writers)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str) -> SavedState:
        """Reads what `as_dict` has returned.

        Raises:
            StateFileError: it is something else.
        """
        try:
            return cls(content["step"], content["state"], content["writers"], source)
        except (LookupError, TypeError) as error:
            raise StateFileError(f"{source} has no state of plugins: {error!r}.") from error


def write_state_file(checkpoint: Path, saved: SavedState, *, mark: str | None = None) -> None:
    """Writes the state into the folder `plugins` of a checkpoint, wholly or not at all.

    Args:
        mark: by which its host tells the run of the checkpoint from others; None: it cannot.

    Raises:
        SnapshotError: it could not be written.
    """
    facts = {"step": saved.step, "plugins": dict(saved.writers), "mark": mark}
    write_snapshot(checkpoint / STATE_FOLDER, {STATE: save_state(saved.state)}, facts)


def read_state_file(
    checkpoint: Path, step: int, *, mark: str | None = None, strict: bool = False
) -> SavedState | None:
    """Returns the state in a checkpoint; None, with a warning, where there is none that fits.

    Args:
        step: the update that the host says the checkpoint is of.
        mark: that of the run that the host says it is of; see `write_state_file`.
        strict: refuse the run instead.

    Raises:
        StateFileError: with `strict`.
    """
    place = checkpoint / STATE_FOLDER
    try:
        if not (place / MANIFEST).exists():
            raise StateFileError(f"{checkpoint} has no state of plugins")
        try:
            state, manifest = load_state(place)
        except SnapshotError as error:
            raise StateFileError(str(error).rstrip(".")) from error
        if manifest.get("step") != step:
            raise StateFileError(
                f"{place} is of update {manifest.get('step')}, and the checkpoint of update {step}"
            )
        if None not in (mark, own := manifest.get("mark")) and own != mark:
            raise StateFileError(f"{place} is of another run than the rest of the checkpoint")
        return SavedState(step, state, manifest.get("plugins", {}), str(checkpoint))
    except StateFileError as error:
        if strict:
            raise StateFileError(
                f"{error}. Resume from another checkpoint, or without strict=True: then plugins "
                "start fresh."
            ) from error
        logger.warning("%s. All plugins start fresh; strict=True refuses that.", error)
        return None
