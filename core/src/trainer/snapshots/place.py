"""Where a run writes and what it goes on from: claimed before the first step, then held."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

from trainer_callback import ResumeError, SnapshotError, option_text

from ..config import ConfigError, TrainerConfig, read_path
from ..processes.ranks import Ranks
from .checkpoint import Checkpoint
from .manifest import MANIFEST
from .run_record import METRICS, RunRecord, make_run_id
from .rundir import RunDirectory
from .store import Found, SnapshotStore, load_named

__all__ = ["Place", "Resume", "check_fresh", "reading", "refusing"]

logger: logging.Logger = logging.getLogger("trainer")

Resume: TypeAlias = bool | Literal["auto"] | str | Path
"""What to go on from; see `Trainer.train`."""

_RESERVED: Final = (
    *("state.pt", "model.safetensors", MANIFEST),
    *(METRICS, "snapshots", "final", "weights"),
)
"""What has a name of its own in the output directory, or in a snapshot."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Before the first step, what is wrong with a snapshot refuses the run.

    Raises:
        ResumeError: in place of a SnapshotError.
    """
    try:
        yield
    except SnapshotError as error:
        raise ResumeError(str(error)) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Refuses the run where a snapshot is not of its form.

    Raises:
        ResumeError: in place of what reading it has raised.
    """
    with refusing():
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"{path} is no snapshot of such a run: {error!r}.") from error


def check_fresh(config: TrainerConfig, resume: Resume) -> None:
    """Refuses a learning rate for a resume where a run starts anew.

    Raises:
        ConfigError: it was not to resume.
    """
    rate = config.resume_learning_rate
    if rate is None:
        return
    option = option_text("resume_learning_rate")
    if resume is False:
        raise ConfigError(
            f"{option} is {rate!r}, and this run does not resume. Set the learning rate of the "
            "optimizer, or resume."
        )
    logger.info("%s has no effect: there is nothing to resume.", option)


class Place:
    """The output directory of one run, and the snapshot that it resumes from.

    Attributes:
        run_id: what tells the run that is open from all others, in all processes.
        handed: returns what somebody else has kept, from which the next run goes on; or None.
    """

    def __init__(
        self,
        config: TrainerConfig,
        store: SnapshotStore,
        checkpoint: Checkpoint,
        artifacts: Mapping[str, bytes],
        ranks: Ranks,
    ) -> None:
        """Makes a place for the run of `config`.

        Raises:
            ConfigError: an artifact is no plain file, or has the name of something else.
        """
        _check_artifacts(artifacts)
        self._config = config
        self._store = store
        self._checkpoint = checkpoint
        self._artifacts = artifacts
        self._ranks = ranks
        self._named: Found | None = None
        self._is_handed = False
        self._directory: RunDirectory | None = None
        self.run_id: str = ""
        self.handed: Callable[[], Found] | None = None

    @contextlib.contextmanager
    def open(self, resume: Resume, search: Callable[[str], object] | None = None) -> Iterator[None]:
        """Holds the output directory while the run lasts.

        Args:
            search: called, with the id of the run that is there, before a snapshot is looked for:
                it may bring some.

        Raises:
            ConfigError: it cannot be used, another run uses it, it holds a run that this one would
                overwrite, or what is trained cannot be saved.
            ResumeError: the snapshot that `resume` names cannot be trusted.
        """
        place = self._config.output_dir
        self._named, self._directory, self._is_handed = None, None, False
        if self._config.dry_run and resume not in (False, "auto"):
            raise ConfigError(
                "a dry run starts anew, and cannot go on from a snapshot. Leave "
                f"{option_text('resume')} or {option_text('dry_run')} out."
            )
        with refusing():
            if not isinstance(resume, bool) and resume != "auto":
                self._named = load_named(read_path(resume, "resume"))
            if resume is True and (place is None or not (place.exists() or search)):
                self.find(resume)  # which says that there is nothing
        if place is None:
            self.run_id = self._ranks.on_main(make_run_id, "run_id")
            yield
            return
        note = self._checkpoint.check_saveable()
        if note is not None and self._ranks.is_main:
            logger.warning("%s: final/ will have the weights in state.pt only.", note)
        with contextlib.ExitStack() as held:
            if self._config.dry_run and self._ranks.is_main:
                held.callback(shutil.rmtree, place, ignore_errors=True)
            claim = partial(self._claim, held, place, resume, search)
            with refusing():
                self.run_id = self._ranks.on_main(claim, "output_dir")
            yield

    def find(self, resume: Resume) -> Found | None:
        """Returns the snapshot that `resume` means, or None for a fresh start.

        Raises:
            ConfigError: there is nothing to resume.
            SnapshotError: there are snapshots, and none is sound.
        """
        if self.handed is not None and resume is False:
            handed, self.handed, self._is_handed = self.handed, None, True
            return handed()
        if self._named is not None:
            return self._named
        found = self._store.load_newest() if resume else None
        if found is None and resume is True:
            where = self._config.output_dir
            raise ConfigError(
                f"there is nothing to resume in {str(where)!r}. Start without "
                f"{option_text('resume')}, or use {option_text('resume', 'auto')}."
                if where is not None
                else "there is nothing to resume without output_dir."
            )
        return found

    @property
    def found_is_own(self) -> bool:
        """Whether the snapshot that `find` returns is one of this run's own."""
        return not self._is_handed and (self._named is None or self._is_own_snapshot)

    def note_snapshot(self) -> None:
        """Remembers that a snapshot is durable here; in other processes nothing happens."""
        if self._directory is not None:
            self._directory.note_snapshot()

    def note_resume(self, step: int) -> None:
        """Remembers where the run goes on; in other processes nothing happens."""
        if self._directory is not None:
            self._directory.record.note_resume(self._directory.path, step)

    def _claim(
        self,
        held: contextlib.ExitStack,
        place: Path,
        resume: Resume,
        search: Callable[[str], object] | None,
    ) -> str:
        """Holds the directory as long as `held`, and makes sure that no file is overwritten that
        this run may not overwrite; returns the run's id.
        """
        self._directory = directory = held.enter_context(RunDirectory(place))
        if directory.is_known:
            self._store.clean()
        if not self._is_own_snapshot:
            directory.finish_clearing()
        asked = resume is True or resume == "auto"
        if asked and search is not None and not self._config.dry_run:
            record = RunRecord.read(place)
            search("" if record is None else record.run_id)
        resumes = self._is_own_snapshot or (asked and directory.has_snapshots)
        resumes = resumes or (self.handed is not None and not resume and directory.is_known)
        if resume is True and not resumes:
            self.find(resume)
        directory.claim(
            self._artifacts,
            resumes=resumes,
            may_restart=resume == "auto",
            overwrite=self._config.overwrite,
        )
        return directory.record.run_id

    @property
    def _is_own_snapshot(self) -> bool:
        place = self._config.output_dir
        if self._named is None or place is None:
            return False
        return self._named[0].resolve().parent == (place / "snapshots").resolve()


def _check_artifacts(artifacts: Mapping[str, bytes]) -> None:
    for name, content in artifacts.items():
        is_name = isinstance(name, str) and name != "" and Path(name).name == name
        if not is_name or name.startswith(".") or name in _RESERVED:
            raise ConfigError(
                f"artifacts: {name!r} cannot be the name of a file beside {', '.join(_RESERVED)}. "
                "Choose another, without a directory and without a dot in front."
            )
        if not isinstance(content, bytes):
            raise ConfigError(
                f"artifacts[{name!r}] must be bytes, got a {type(content).__name__}. Write "
                "text.encode()."
            )
