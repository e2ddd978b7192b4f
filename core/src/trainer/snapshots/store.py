"""The snapshots of one run: written off the training path, kept or removed, found again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from torch import Tensor, nn

from trainer_callback import SnapshotError, option_text
from trainer_callback.state import to_plain

from ..config import TrainerConfig
from ..step.losses import NonFiniteError
from .durable import FileWriter
from .finite import FiniteCheck
from .frozen import fill_in
from .holds import Hold, Holds
from .manifest import MANIFEST
from .model_state import check_model_state
from .snapshot import (
    list_snapshots,
    remove_leftovers,
    remove_snapshot,
    snapshot_name,
    step_of,
    write_snapshot,
)
from .state_file import load_resumable, load_state, read_state, save_state
from .writer import BackgroundWriter, CpuCopier

__all__ = [
    "Found",
    "SnapshotStore",
    "load_named",
]

Found: TypeAlias = tuple[Path, dict[str, Any], dict[str, Any]]
"""Path, state and manifest of a snapshot."""

logger: logging.Logger = logging.getLogger("trainer")

_MAX_FAILURES_IN_A_ROW: Final = 3


class SnapshotStore:
    """Writes and finds what a run keeps under its output directory: `snapshots/`, `weights/` and
    `final/`. What gets its name there is finite, and has been read as a resume reads it.

    Attributes:
        finite: what the weights were when the run began.
    """

    def __init__(self, config: TrainerConfig) -> None:
        """Makes a store for the run's `output_dir`; without one it can write nothing."""
        self._place = config.output_dir
        self._keep = config.keep_snapshots
        self._is_regular = bool(config.snapshot_interval or config.snapshot_epochs)
        self._writer = BackgroundWriter(sync=config.snapshot_sync)
        self._copier = CpuCopier()
        self.finite: FiniteCheck = FiniteCheck()
        self._failures = 0
        self._postponed: Exception | None = None
        self._holds = Holds()
        self._newest: Path | None = None

    @property
    def can_write(self) -> bool:
        """Whether the run has an output directory."""
        return self._place is not None

    @property
    def _output_dir(self) -> Path:
        if self._place is None:
            raise SnapshotError("this run has no output_dir, so it writes nothing.")
        return self._place

    @property
    def _directory(self) -> Path:
        return self._output_dir / "snapshots"

    def clean(self) -> None:
        """Removes what killed writes have left."""
        for directory in (self._directory, self._output_dir / "weights"):
            remove_leftovers(directory)
        remove_leftovers(self._output_dir, ["final"])

    @property
    def is_prepared(self) -> bool:
        """Whether nothing is to be taken ahead: also where the one at the end may be the first."""
        return self._copier.is_prepared or not self._is_regular

    def prepare(self, tensors: Iterable[Tensor]) -> None:
        """Takes, beside training, the memory that `save` will copy `tensors` into."""
        self._copier.prepare(tensors)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        facts: Mapping[str, Any],
        done: Callable[[Path], None],
        artifacts: Mapping[str, FileWriter],
    ) -> None:
        """Copies `state` and writes it as the snapshot of update `step`; waits for the one before
        first.

        Args:
            done: called by `collect` with the path, once the snapshot is durable.
            artifacts: files to be written beside the state.

        Raises:
            SnapshotError: the third failed write in a row.
        """
        self.collect(wait=True)
        copy = self._copier.copy(state)
        path = self._directory / snapshot_name(step)
        beside = [self._output_dir / "metrics.jsonl"]  # the state has its length

        def write() -> None:
            self._check_finite(copy, f"the snapshot of update {step}")
            files = {"state.pt": save_state(copy), **artifacts}
            write_snapshot(path, files, facts, beside, check=read_state)
            self.remove_newer_than(path)
            self.remove_oldest(path)

        def report() -> None:
            self._failures = 0
            done(path)

        self._writer.start(write, report)

    def collect(
        self, *, wait: bool = False, must_succeed: bool = False, may_raise: bool = True
    ) -> None:
        """Reports the write that has ended; a failed one is logged, the third in a row raised.

        Args:
            must_succeed: raise at the first failure.
            may_raise: else the next call that may does.

        Raises:
            SnapshotError: see above.
            NonFiniteError: the write was refused, at the first time.
        """
        try:
            if may_raise and self._postponed is not None:
                raise self._postponed
            self._writer.collect(wait=wait)
        except NonFiniteError as error:
            self._raise(error, may_raise)
        except SnapshotError as error:
            self._failures += 1
            if must_succeed or self._failures >= _MAX_FAILURES_IN_A_ROW:
                self._raise(error, may_raise)
            else:
                logger.error("%s Training goes on.", str(error))  # a record may be kept

    def _raise(self, error: Exception, may_raise: bool) -> None:
        self._postponed = None if may_raise else error
        try:
            if may_raise:
                raise error
        finally:
            del error  # whose traceback has this frame

    def remove_oldest(self, newest: Path) -> None:
        """Removes the oldest snapshots up to `newest`, which is sound, beyond those to keep, but
        for those that somebody holds.
        """
        self._newest = newest
        known = list_snapshots(newest.parent)
        for path in [path for path in known if step_of(path) <= step_of(newest)][self._keep :]:
            self._holds.remove_unread(path)

    def hold(self, path: Path) -> Hold:
        """Keeps a snapshot from retention; see `TrackedRun.hold_snapshot`."""
        place = self._directory.resolve()
        if path.resolve().parent != place or step_of(path) < 0:
            raise SnapshotError(
                f"{path} is no snapshot of this run, whose snapshots are in {self._directory}. "
                "Give the path that on_snapshot_saved was called with."
            )
        try:
            return self._holds.take(self._directory / path.name, self._catch_up)
        except FileNotFoundError:
            raise SnapshotError(
                f"{path} is gone: {self._keep} newer snapshots are durable. Hold it in "
                "on_snapshot_saved, or raise keep_snapshots."
            ) from None

    def end(self) -> None:
        """Leaves what is held to the next run: this one has given its directory back. Gives the
        memory back.
        """
        self._newest = None
        self._copier.release()

    def _catch_up(self) -> None:
        if (newest := self._newest) is not None:
            self.remove_oldest(newest)

    def remove_newer_than(self, newest: Path) -> None:
        """Removes snapshots of later updates than `newest`, which is durable: damaged ones, or ones
        of a history that a resume from before them has left.
        """
        for path in list_snapshots(newest.parent):
            if step_of(path) > step_of(newest):
                logger.info("removed %s: the run went on from a snapshot before it.", path)
                remove_snapshot(path)

    def load_newest(self) -> Found | None:
        """Returns path, state and manifest of the newest sound snapshot, or None where there is no
        snapshot at all.

        Raises:
            SnapshotError: there are snapshots, but none is sound.
        """
        paths = list_snapshots(self._directory) if self.can_write else []
        problem: SnapshotError | None = None
        for path in paths:
            try:
                state, manifest = load_resumable(path)
            except SnapshotError as error:
                logger.warning("%s Trying the snapshot before it.", error)
                problem = problem or error
                continue
            return path, state, manifest
        if problem is not None:
            raise SnapshotError(
                f"none of the {len(paths)} snapshots is sound; the newest: {problem}"
            )
        return None

    def save_final(
        self,
        weights: Mapping[str, Any],
        progress: Mapping[str, Any],
        files: Mapping[str, FileWriter],
        facts: Mapping[str, Any],
    ) -> Path:
        """Writes the finished model to `final/`, with `files` beside it; returns its path.

        Raises:
            SnapshotError: it could not be written.
            NonFiniteError: the weights are not finite.
        """
        self._save_model("final/", weights, facts, files, with_crc=True, progress=progress)
        path = self._output_dir / "final"
        logger.info("wrote the finished model to %s.", path)
        return path

    def save_weights(self, name: str, weights: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """Writes a model's weights and buffers to `weights/NAME/`; returns the digest.

        Raises:
            SnapshotError: it could not be written.
            NonFiniteError: the weights are not finite.
        """
        return self._save_model(f"weights/{name}", weights, facts, {})

    def _save_model(
        self,
        place: str,
        weights: Mapping[str, Any],
        facts: Mapping[str, Any],
        files: Mapping[str, FileWriter],
        with_crc: bool = False,
        **more: Any,
    ) -> str:
        state = {"model": to_plain(weights, "model", copy_tensors=False), **more}
        self._check_finite(state, place)
        files = {"state.pt": save_state(state, with_crc=with_crc), **files}
        return write_snapshot(self._output_dir / place, files, facts, check=read_state)

    def read_weights(
        self,
        name: str,
        digest: str,
        fallback_step: int | None,
        model: nn.Module,
        own: Mapping[str, Any],
    ) -> tuple[str, dict[str, Any], tuple[int, int]]:
        """Returns where saved weights come from, the weights, which fit the `model` and `own`, its
        `state_dict`, and their epoch and update; see `TrainerProtocol.load_weights`.
        """
        path = self._output_dir / "weights" / name
        try:
            state, manifest = load_state(path)
            if manifest["digest"] != digest:
                raise SnapshotError(f"{path} is not the one that the snapshot refers to.")
        except SnapshotError as error:
            if fallback_step is None:
                raise
            logger.warning("%s Trying the snapshot of update %d.", error, fallback_step)
            path = self._directory / snapshot_name(fallback_step)
            state, manifest = load_state(path)
        weights = fill_in(state["model"], state.get("left_out", {}), own, path)
        check_model_state(model, own, weights, path)
        place = (manifest["epoch"], manifest["step"])
        return str(path.relative_to(self._output_dir)), weights, place

    def delete_weights(self, name: str) -> None:
        """Removes `weights/NAME/`; what no run wrote there stays."""
        remove_snapshot(self._output_dir / "weights" / name)

    def _check_finite(self, state: Mapping[str, Any], what: str) -> None:
        """Refuses `state` where a tensor of it has become NaN or infinite.

        Raises:
            NonFiniteError: names the tensor, and the newest snapshot that is finite.
        """
        fault = self.finite.describe_fault(state)
        if fault is None:
            return
        good = self._find_finite()
        way = "There is no snapshot from before it." if good is None else f"{good} is finite."
        raise NonFiniteError(
            f"{fault}, so {what} was not written. {way} Lower the learning rate, or clip with "
            f"{option_text('max_grad_norm')}."
        )

    def _find_finite(self) -> Path | None:
        """Returns the newest snapshot that is sound and finite."""
        for path in list_snapshots(self._directory):
            try:
                if self.finite.describe_fault(load_resumable(path)[0]) is None:
                    return path
            except SnapshotError:
                continue
        return None


def load_named(path: Path) -> Found:
    """Returns path, state and manifest of the snapshot that was named explicitly.

    Raises:
        SnapshotError: it is none, or cannot be trusted.
    """
    if not (path / MANIFEST).exists() and (path / "snapshots").is_dir():
        newest = next(iter(list_snapshots(path / "snapshots")), None)
        raise SnapshotError(
            f"{path} is a run, not a snapshot. "
            + (f"Its newest one is {newest}." if newest else "It has none.")
        )
    return path, *load_resumable(path)
