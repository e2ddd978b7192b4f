"""The best weights: kept where a crash cannot reach them, deleted when nobody needs them."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from trainer_callback import OptionError, SnapshotError, TrainerProtocol

from .decision import State

__all__ = ["BestWeights"]

logger: Final = logging.getLogger("trainer.early_stopping")


class BestWeights:
    """Weights and buffers of the best step: a file of the run, or a copy in memory.

    In memory where the run has no output directory, and where the file could not be written.

    A file outlives its own best. The newest snapshot on disk may still refer to it, and so may
    the ones before, to which a resume falls back when the newest is damaged. So it is deleted
    when it is no longer the best *and* no snapshot is left that needs it. Which snapshot needs
    which file is part of the state, so that a resumed process knows it too.
    """

    def __init__(self, name: str | None) -> None:
        """Keeps nothing yet; `name` tells the files of several instances apart."""
        words = ["early-stopping", *([re.sub(r"[^\w.-]", "-", name)] if name else []), "step"]
        self._prefix = "-".join(words)
        self._copy: dict[str, Any] | None = None

    def claim(self, trainer: TrainerProtocol) -> None:
        """Makes this the one that restores weights at the end of the run of `trainer`.

        Raises:
            OptionError: there is one already; only one set of weights can be the final one.
        """
        with contextlib.suppress(TypeError):  # a plain object that cannot be a weak key
            if _restorers.setdefault(trainer, self) is not self:
                raise OptionError(
                    "EarlyStoppingCallback: two instances in this run have restore_best, and the "
                    "model can end with one set of weights. Use restore_best=False in one of them."
                )

    def release(self, trainer: TrainerProtocol) -> None:
        """Ends `claim`."""
        with contextlib.suppress(TypeError):
            if _restorers.get(trainer) is self:
                del _restorers[trainer]

    def forget(self) -> None:
        """Drops the copy in memory, for another run."""
        self._copy = None

    def check(self, trainer: TrainerProtocol, state: State) -> None:
        """Says, at a resume, that the best weights of before are not where the run is now."""
        folder = getattr(trainer, "output_dir", None)
        if folder is None or state.best_file is None or not getattr(trainer, "is_main_process", 1):
            return
        place = Path(folder, "weights", state.best_file)
        if self._copy is None and not place.exists():
            logger.warning(
                "early stopping: the best weights, of epoch %s, are not in %s. Copy that folder "
                "there from the run that goes on here, or they cannot be put back.",
                *(state.best_epoch, place),
            )

    def keep(self, trainer: TrainerProtocol, state: State) -> None:
        """Keeps the weights as they are now, which `state` has just called the best."""
        if getattr(trainer, "output_dir", None) is None:
            self._copy = _copy_weights(trainer)
            return
        earlier, state.best_file = state.best_file, f"{self._prefix}-{state.best_step:08d}"
        try:
            state.best_digest, self._copy = trainer.save_weights(state.best_file), None
        except SnapshotError as error:
            state.best_digest, self._copy = "", _copy_weights(trainer)
            logger.warning("early stopping keeps the best weights in memory only: %s", error)
        self._delete(trainer, state, [earlier])

    def restore(self, trainer: TrainerProtocol, state: State, monitor: str) -> None:
        """Copies the best weights into the model, and says which; where it cannot, it says why."""
        if state.best is None or state.best_epoch is None or state.best_step is None:
            logger.warning("early stopping saw no best %s: the last weights stay.", monitor)
            return
        best = f"epoch {state.best_epoch} ({monitor} {state.best:.6g})"
        step = getattr(trainer, "step", state.best_step)
        if (state.best_check, state.best_step) == (state.checks, step):
            logger.info("early stopping loads nothing: the last weights are the best, %s.", best)
        else:
            try:
                source = self._load(trainer, state)
            except SnapshotError as error:
                text = "early stopping cannot restore %s, so the last weights stay: %s"
                logger.warning(text, best, error)
                return
            logger.info("early stopping restored the weights of %s from %s.", best, source)
            if hasattr(trainer, "note_weights"):
                detail = f"early stopping's best {monitor}, {state.best:.6g}"
                trainer.note_weights(detail, epoch=state.best_epoch, step=state.best_step)
        if hasattr(trainer, "log"):  # so that the manifest of the final model tells
            found = {"epoch": state.best_epoch, "step": state.best_step, monitor: state.best}
            trainer.log({f"restored_{name}": value for name, value in found.items()})

    def note_snapshot(self, state: State, step: int) -> None:
        """Notes what the snapshot of `step`, now under way, needs at resume."""
        if state.best_file is not None:
            state.file_of_snapshot[step] = state.best_file

    def tidy(self, trainer: TrainerProtocol, state: State, path: Path, step: int) -> None:
        """Deletes what no snapshot needs, now that the one of `step` is durable at `path`."""
        files = state.file_of_snapshot
        state.file_of_snapshot = {
            other: file
            for other, file in files.items()
            if other > step or _locate(other, step, path).exists()  # later ones are under way
        }
        self._delete(trainer, state, files.values())

    def finish(self, trainer: TrainerProtocol, state: State) -> None:
        """Ends the run: what a resume would not ask for goes."""
        self._copy = None
        if state.best_file not in state.file_of_snapshot.values():
            last, state.best_file = state.best_file, None
            self._delete(trainer, state, [last])

    def _load(self, trainer: TrainerProtocol, state: State) -> str:
        if self._copy is not None:
            trainer.model.load_state_dict(self._copy)  # in place: tied weights stay tied
            return "memory"
        if state.best_file is None or getattr(trainer, "output_dir", None) is None:
            raise SnapshotError("they were not kept.")
        step = state.best_step
        return trainer.load_weights(state.best_file, state.best_digest, fallback_step=step)

    def _delete(self, trainer: TrainerProtocol, state: State, files: Iterable[str | None]) -> None:
        needed = {state.best_file, *state.file_of_snapshot.values()}
        for file in set(files) - needed:
            if file is not None:
                trainer.delete_weights(file)


_restorers: Final[WeakKeyDictionary[TrainerProtocol, BestWeights]] = WeakKeyDictionary()


def _copy_weights(trainer: TrainerProtocol) -> dict[str, Any]:
    """Returns a copy on the same device, in which tied weights share their memory too."""
    return copy.deepcopy(trainer.model.state_dict())


def _locate(other: int, step: int, path: Path) -> Path:
    """Returns where the snapshot of `other` lies: the name ends with its number, as that of `path`
    ends with `step`; `path` if it does not.
    """
    start = path.name.rstrip("0123456789")
    digits = path.name[len(start) :]
    if not digits or int(digits) != step:
        return path
    return path.with_name(f"{start}{other:0{len(digits) if digits.startswith('0') else 1}d}")
