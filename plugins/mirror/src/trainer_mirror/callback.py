"""The callback: what is sent when, what is brought back, and what is said."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

from trainer_callback import OptionError, TrainerCallback, TrainerProtocol, UsageError
from trainer_callback.checks import option_error
from trainer_callback.values import check_types

from .back import bring_newest, check_owner, newest_whole, retry
from .store import Store, read_sizes

__all__ = ["MirrorCallback"]

logger: Final = logging.getLogger("trainer.mirror")

_refuse = partial(option_error, "MirrorCallback", "mirror_")
FIRST_PAUSE: Final = 1.0
"""Seconds before the second try; it doubles with each."""
_LOOK_SECONDS: Final = 10.0
"""How long the start of a run waits to be told that the mirror is another run's."""


@dataclass
class _Load:
    """What is to be sent.

    Attributes:
        name: of the copy.
        kind: `snapshot` or `final`.
        text: what it is, in words.
        files: name there -> file, and how many bytes of it. They are open, so that they stay as
            they are, whoever removes or replaces them.
        held: closes them.
    """

    name: str
    kind: str
    text: str
    files: dict[str, tuple[BinaryIO, int]]
    held: contextlib.ExitStack

    @classmethod
    def open(cls, name: str, text: str, root: Path, own: Path, also: Iterable[Path] = ()) -> _Load:
        """Opens the files of the folder `own`, the manifest last, and before them `also`, as far as
        that can be; all of them are below `root`.

        Raises:
            OSError: one of `own` cannot be read.
        """
        files: dict[str, tuple[BinaryIO, int]] = {}
        with contextlib.ExitStack() as held:
            for path in (
                *also,
                *sorted(own.iterdir(), key=lambda path: path.name == "manifest.json"),
            ):
                with contextlib.suppress(*(() if path.parent == own else (OSError,))):
                    if path.is_file():  # a pipe would be waited for
                        file = held.enter_context(path.open("rb"))
                        size = os.fstat(file.fileno()).st_size
                        files[path.relative_to(root).as_posix()] = (file, size)
            kind = "final" if name == "final" else "snapshot"
            return cls(name, kind, text, files, held.pop_all())


@dataclass
class _Progress:
    """What changes while it runs.

    Attributes:
        run_id: of the run.
        loads: `snapshot` and `final` -> the newest of it that nobody has begun to send.
        unsent: `snapshot` and `final` -> what of them is not there yet, in words.
        newest: the snapshot that is there, in words.
        error: why the last try failed.
        refusal: the mirror is another run's.
        is_behind, is_failing, is_told: this, or the refusal, has been said.
    """

    run_id: str = ""
    loads: dict[str, _Load] = field(default_factory=dict)
    unsent: dict[str, str] = field(default_factory=dict)
    newest: str = "no snapshot"
    error: Exception | None = None
    refusal: UsageError | None = None
    is_behind: bool = False
    is_failing: bool = False
    is_told: bool = False


class MirrorCallback(TrainerCallback):
    """Copies every snapshot and the finished model to a URL, and resumes from there.

    It sends in the background, and training never waits for it. Where the store is slower than the
    snapshots come, the newest is sent, and those before it are left out.

    Args:
        url: where to, as fsspec has it, such as s3://bucket/run-1; one for each run
        keep: snapshots to keep there
        retries: further tries of what could not be sent, after 1, 2, 4, ... seconds
        wait: seconds that the end of the run waits for what is still to be sent
    """

    critical = False
    needs_output_dir = True
    logs_metrics: tuple[str, ...] | None = ()
    contract: ClassVar[Mapping[str, object]] = {
        "passive": True,
        "flags": ("--mirror_url", "memory://{new}"),
        "varying": ("self._progress.*", "self._left"),
        "waived_clauses": {
            "a_second_run_of_the_same_object_starts_clean": "a mirror belongs to one run, and "
            "refuses the second by its id"
        },
    }

    def __init__(self, url: str, *, keep: int = 2, retries: int = 5, wait: float = 60.0) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(MirrorCallback, locals(), "mirror_")
        if re.match(r"[^/]+://[^/]*:[^/]*@", url):
            raise OptionError(
                "MirrorCallback: url has a password in it, which logs and config.yaml would show. "
                "Leave it out, and give it to the client by its environment or configuration."
            )
        if keep < 1:
            raise _refuse("keep", "at least 1", keep, use=2)
        if retries < 0:
            raise _refuse("retries", "at least 0", retries, use=5)
        if not 0 <= wait < math.inf:
            raise _refuse("wait", "at least 0 and finite", wait, use=60.0)
        self.url = url
        self.keep = keep
        self.retries = retries
        self.wait = wait
        self._store: Store | None = None
        self._left = wait
        self._progress = _Progress()
        self._lock = threading.Lock()
        self._is_idle, self._is_closed = threading.Event(), threading.Event()

    def on_snapshot_search(self, trainer: TrainerProtocol) -> None:
        place = trainer.output_dir
        assert place is not None  # needs_output_dir
        store, here = Store(self.url), newest_whole(place)
        try:
            copies = retry(store.copies)
            if copies and (here >= 0 or (place / "final").exists()):
                check_owner(copies, trainer.run_id, self.url)
            check_owner(copies, copies[0].run_id if copies else "", self.url)
            brought = bring_newest(store, copies, place, here + 1)
        except UsageError:
            raise
        except Exception as error:
            text = f"{self.url} cannot be read: {type(error).__name__}: {error}."
            if here < 0:
                raise UsageError(
                    f"{text} There may be snapshots there, and there are none here. Try again when "
                    "it can be reached, or start without the mirror."
                ) from error
            logger.warning("%s Going on from what is here, update %d.", text, here)
            return
        if brought is not None:
            logger.info("brought the snapshot of update %d from %s.", brought.step, self.url)

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not trainer.is_main_process:
            return
        self._progress, self._left = _Progress(trainer.run_id), self.wait
        self._is_closed, self._is_idle = threading.Event(), threading.Event()
        self._store = Store(self.url, self._is_closed)
        trainer.submit(self, self._send)  # which looks whose mirror it is
        self._is_idle.wait(_LOOK_SECONDS)
        if self._progress.refusal is not None:
            self._progress.is_told = True
            raise self._progress.refusal

    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        if not (path / "manifest.json").exists():
            raise UsageError(
                f"MirrorCallback: {path} is a checkpoint of another trainer than trainer.Trainer, "
                "and no snapshot, which alone can be mirrored. Use what that trainer has itself to "
                "copy its checkpoints, such as push_to_hub."
            )
        root = path.parent.parent
        also = [*root.glob("[!.]*"), root / ".run.json", *root.glob("weights/[!.]*/*")]
        name = f"{path.name}-{str(read_sizes(path / 'manifest.json')['sha256'])[:8]}"
        self._put(trainer, _Load.open(name, f"the snapshot of update {step}", root, path, also))

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        self._wait()

    def on_final_saved(self, trainer: TrainerProtocol, path: Path) -> None:
        self._put(trainer, _Load.open("final", "final/", path, path))
        self._wait()

    def close(self) -> None:
        self._is_closed.set()
        store, self._store, progress = self._store, None, self._progress
        with self._lock:
            for load in progress.loads.values():
                load.held.close()
            progress.loads.clear()
        if store is None or self._is_refused():
            return
        if not progress.unsent:
            logger.info("%s has %s.", self.url, progress.newest)
            return
        missing, why = " and ".join(progress.unsent.values()), progress.error or "no time was left"
        text = "%s is without %s (%s). It has %s, and the output directory all."
        logger.warning(text, self.url, missing, why, progress.newest)

    def _is_refused(self) -> bool:
        """Whether the mirror is another run's, which is said once."""
        progress = self._progress
        if progress.refusal is not None and not progress.is_told:
            progress.is_told = True
            logger.warning("%s Nothing more is sent.", progress.refusal)
        return progress.refusal is not None

    def _put(self, trainer: TrainerProtocol, load: _Load) -> None:
        """Has `load` sent, in place of one of its kind that waits still."""
        progress = self._progress
        if self._store is None or self._is_refused():
            load.held.close()
            return
        with self._lock:
            left_out = progress.loads.pop(load.kind, None)
            progress.loads[load.kind], progress.unsent[load.kind] = load, load.text
            self._is_idle.clear()
        if left_out is not None:
            left_out.held.close()
            if not progress.is_behind and progress.error is None:  # one that fails is not slow
                progress.is_behind = True
                text = "%s is slower than the snapshots come: %s is left out, and others may be."
                logger.warning(text, self.url, left_out.text)
        trainer.submit(self, self._send)

    def _wait(self) -> None:
        """Waits for what is still to be sent, at both ends of a run together as long as `wait`; a
        second Ctrl-C ends only this.
        """
        if self._store is None or self._is_idle.wait(0.1):
            return
        logger.info("waiting for %s, at most %g s.", self.url, self._left)
        start = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            self._is_idle.wait(self._left)
        self._left = max(self._left - (time.monotonic() - start), 0.0)

    def _send(self) -> None:
        """Sends what waits, until nothing does; in the background."""
        progress = self._progress
        while True:
            with self._lock:
                kind = next(iter(sorted(progress.loads, reverse=True)), "")  # the snapshot first
                load = progress.loads.pop(kind, None)
            with load.held if load is not None else contextlib.nullcontext():
                self._try(load)
            with self._lock:
                if not progress.loads:
                    self._is_idle.set()
                    return

    def _try(self, load: _Load | None) -> None:
        progress = self._progress
        for attempt in range(1 if load is None else self.retries + 1):
            waited = attempt > 0 and self._is_closed.wait(FIRST_PAUSE * 2 ** (attempt - 1))
            if waited:
                return
            if attempt > 0 and progress.loads:
                break
            try:
                self._send_once(load)
                return
            except UsageError as refusal:
                progress.refusal = refusal
                return
            except Exception as error:
                progress.error = error
        if not progress.is_failing and not self._is_closed.is_set():
            progress.is_failing = True
            text = "%s fails: %s: %s. The run goes on, and each snapshot is tried."
            logger.warning(text, self.url, type(progress.error).__name__, progress.error)

    def _send_once(self, load: _Load | None) -> None:
        store, progress = self._store, self._progress
        if store is None:
            return
        copies = store.copies()
        check_owner(copies, progress.run_id, self.url)
        if copies:
            progress.newest = f"the snapshot of update {copies[0].step}"
        if load is None:
            return
        if load.name not in [copy.name for copy in copies]:
            store.send(load.name, progress.run_id, load.files)
        with self._lock:
            if progress.unsent.get(load.kind) == load.text:
                del progress.unsent[load.kind]
        progress.error = None
        if load.kind == "snapshot":
            progress.newest = load.text
            store.prune(load.name, self.keep)
