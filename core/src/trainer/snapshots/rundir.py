"""The output directory as a place: usable, locked by one process, and whose files are whose."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from trainer_callback import UsageError, option_text

from ..config import ConfigError
from .durable import has_name, make_directory, replace_file
from .manifest import own_file_names
from .run_record import METRICS, RECORD, RunRecord, digest_of, make_run_id
from .snapshot import find_foreign, list_snapshots, remove_leftovers, remove_snapshot

try:
    import fcntl
except ImportError:
    raise UsageError("trainer needs a POSIX system such as Linux. On Windows, use WSL.") from None

__all__ = ["RunDirectory"]

logger: logging.Logger = logging.getLogger("trainer")

_LOCK: Final = ".lock"
_DIRECTORIES: Final = ("snapshots", "final", "weights")
_PATIENCE: Final = 1.0
"""Seconds in which a process that has the lock writes its name."""

_open_locks: Final[set[int]] = set()
"""Descriptors of the locks that this process holds. A lock lasts as long as anybody has its file
open: a worker that outlives a killed run must not, so a forked child closes them.
"""


def _close_locks() -> None:
    for lock in _open_locks:
        os.close(lock)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_locks)


class RunDirectory:
    """Context manager that holds lock and `record` of an output directory while a run is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._is_held = False
        self.record: RunRecord = RunRecord()

    @property
    def is_known(self) -> bool:
        """Whether a run of this trainer has written here before."""
        return RunRecord.read(self.path) is not None

    @property
    def has_snapshots(self) -> bool:
        """Whether there is something to go on from, sound or not."""
        return bool(list_snapshots(self.path / "snapshots"))

    @property
    def _holds_run(self) -> bool:
        with contextlib.suppress(OSError):
            if any((self.path / "snapshots").iterdir()):
                return True
        with contextlib.suppress(OSError):  # one that was refused has logged nothing
            if (self.path / METRICS).lstat().st_size:
                return True
        return os.path.lexists(self.path / "final")

    def __enter__(self) -> RunDirectory:
        """Makes the directory, tries a write, takes the lock.

        Raises:
            ConfigError: it cannot be written, or another run has the lock; the message has the
                cause or the other's pid and host.
        """
        with _refusing(self.path):
            make_directory(self.path)
            _probe(self.path)
            lock = self._open_lock()
        try:
            self._acquire(lock)
            self._check_parts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None and self._lock in _open_locks:  # not in a forked child
            _open_locks.discard(self._lock)
            if self._is_held:
                os.ftruncate(self._lock, 0)  # its next owner may be asked for before it has written
            os.close(self._lock)  # which releases the lock
        self._lock, self._is_held = None, False

    def finish_clearing(self) -> None:
        """Ends the removal of a run that a kill has cut short.

        Raises:
            ConfigError: something cannot be removed.
        """
        record = RunRecord.read(self.path)
        if record is not None and record.clearing:
            self._remove_run(record)

    def claim(
        self, contents: Mapping[str, bytes], *, resumes: bool, may_restart: bool, overwrite: bool
    ) -> None:
        """Makes the directory that of this run, which keeps the id of the one that it goes on with,
        and writes `contents`. What no run wrote is never touched.

        Args:
            contents: name -> content of the files that tell about the run.
            resumes: the run goes on from a snapshot that is here.
            may_restart: it may start again where an earlier one has not come to its first snapshot.
            overwrite: it may remove an earlier one.

        Raises:
            ConfigError: it holds another run, or a file that this one would replace.
        """
        record = RunRecord.read(self.path)
        if record is None and resumes:
            return  # no snapshot is sound, which is for its reader to say
        foreign = [*self._find_foreign(record, contents, deep=overwrite and not resumes)]
        if resumes or (may_restart and record is not None):
            foreign = [file for file in foreign if file.name not in contents]
        had = record is not None and record.had_snapshot and not record.clearing
        holds = (self._holds_run or had) and (record is not None or not foreign)
        ends = had or not may_restart or (record is not None and (self.path / "final").exists())
        if holds and ends and not (resumes or overwrite):
            raise self._refuse_run(gone=may_restart)
        if RunRecord.is_foreign(self.path):
            if record is None:
                foreign.append(self.path / RECORD)
            else:
                logger.warning(
                    "%s is not as a run has left it: it is kept as %s.found.", RECORD, RECORD
                )
                (self.path / RECORD).replace(self.path / f"{RECORD}.found")
        if foreign:
            name = foreign[0].relative_to(self.path)
            raise ConfigError(
                f"the output directory {str(self.path)!r} holds {str(name)!r}, which no run wrote "
                "and this one would replace. Move it, or choose another output_dir."
            )
        if overwrite and not resumes and self._holds_run:
            self._clear(record or RunRecord())
            record = None
        with _refusing(self.path):
            self._take(record or RunRecord(), contents, same_run=resumes or not ends)

    def note_snapshot(self) -> None:
        """Remembers that a snapshot is durable here; makes anew what holds the directory, where
        somebody has removed it.
        """
        here = self.path.is_dir()  # else the next snapshot makes it
        if here and self._lock is not None and not has_name(self._lock, self.path / _LOCK):
            self.__exit__()
            try:
                self._acquire(self._open_lock())
            except (ConfigError, OSError) as error:
                logger.warning("%s cannot be locked anew: %s", self.path, error)
        if not (self.record.had_snapshot and (self.path / RECORD).exists()):
            self.record.had_snapshot = True
            with contextlib.suppress(OSError):  # it matters only if somebody removes the snapshot
                self.record.write(self.path)

    def _open_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link's target is not ours to write
        self._lock = os.open(self.path / _LOCK, flags, 0o644)
        _open_locks.add(self._lock)
        return self._lock

    def _take(self, old: RunRecord, contents: Mapping[str, bytes], *, same_run: bool) -> None:
        """Writes the record, then `contents`: whatever a kill leaves is known for a run's own."""
        remove_leftovers(self.path, [RECORD, "gone-final", *contents])
        self.record = record = RunRecord({**old.files, METRICS: []}, self.has_snapshots)
        record.resumes = old.resumes if record.had_snapshot else []
        record.run_id = (old.run_id if same_run else "") or make_run_id()
        own = {}
        for name, content in contents.items():
            file = self.path / name
            known = old.owns(file) or not os.path.lexists(file)
            if not known and digest_of(file) != digest_of(content):
                logger.warning("%s is not as a run has left it: this one leaves it alone.", file)
                continue
            record.files[name] = [digest_of(file), digest_of(content)]
            own[file] = content
        record.write(self.path)
        for file, content in own.items():
            if digest_of(file) != digest_of(content):
                replace_file(file, content)

    def _find_foreign(
        self, record: RunRecord | None, contents: Mapping[str, bytes], *, deep: bool
    ) -> Iterator[Path]:
        """Yields files of others that this run would replace; `deep`: or remove with an earlier
        run.
        """
        known = record or RunRecord()
        for name in dict.fromkeys((METRICS, *contents, *(known.files if deep else ()))):
            file = self.path / name
            same = name in contents and digest_of(file) == digest_of(contents[name])
            if os.path.lexists(file) and not same and not known.owns(file):
                yield file
        final = self.path / "final"
        places = [final] if deep or own_file_names(final) is None else []
        if deep:
            places += list_snapshots(self.path / "snapshots")
            places += self._weights()
        for place in places:
            if place.is_dir() and not (deep and place.is_symlink()):  # of which the link goes only
                names = find_foreign(place)
                yield from (place / name for name in names) if record else place.iterdir()

    def _weights(self) -> list[Path]:
        place = self.path / "weights"
        found = sorted(place.iterdir()) if place.is_dir() else []
        return [each for each in found if own_file_names(each) is not None]

    def _refuse_run(self, *, gone: bool) -> ConfigError:
        use = f"already. Use {option_text('resume', True)} to go on with it,"
        if gone:
            use = "already, and no snapshot to go on from. Use"
        return ConfigError(
            f"the output directory {str(self.path)!r} holds a run {use} "
            f"{option_text('overwrite', True)} to start afresh, or another one."
        )

    def _clear(self, record: RunRecord) -> None:
        """Removes an earlier run; once that has begun, a kill leaves nothing to resume."""
        record.clearing = True
        with _refusing(self.path):
            record.write(self.path)
        self._remove_run(record)

    def _remove_run(self, record: RunRecord) -> None:
        snapshots = self.path / "snapshots"
        if not snapshots.is_symlink():
            for each in (*list_snapshots(snapshots), *self._weights(), self.path / "final"):
                remove_snapshot(each)
        for name in record.files:
            with contextlib.suppress(OSError):
                if record.owns(self.path / name):
                    (self.path / name).unlink()
        remove_leftovers(self.path, [RECORD, "final", "gone-final"])
        for place in (snapshots, self.path / "weights"):
            remove_leftovers(place)
            with contextlib.suppress(OSError):  # others may have something there
                place.rmdir()
        left = [*list_snapshots(snapshots), self.path / "final", self.path / METRICS]
        for each in [snapshots] if snapshots.is_symlink() else left:
            if os.path.lexists(each):
                raise ConfigError(
                    f"{str(each)!r} cannot be removed. Remove it yourself, or choose another "
                    "output_dir."
                )

    def _acquire(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(lock)
            raise ConfigError(
                f"the output directory {str(self.path)!r} is in use by process {owner['pid']} on "
                f"{owner['host']}. Wait for it, or choose another output_dir."
            ) from None
        except OSError as error:
            logger.warning(
                "the file system of %s has no locks (%s): see to it that no other run writes "
                "there.",
                *(self.path, error.strerror),
            )
            return
        self._is_held = True
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _check_parts(self) -> None:
        """Refuses what a run would meet later: something else of the name of its parts, or a part
        that cannot be written.
        """
        for name in (*_DIRECTORIES, METRICS):
            part = self.path / name
            wanted = "file" if name == METRICS else "directory"
            if not os.path.lexists(part):
                continue
            if not (part.is_file() if name == METRICS else part.is_dir()):
                raise ConfigError(
                    f"{str(part)!r} is in the way: a run keeps a {wanted} of that name there. "
                    "Move it, or choose another output_dir."
                )
            with _refusing(part):
                os.close(os.open(part, os.O_WRONLY)) if name == METRICS else _probe(part)


def _read_owner(lock: int) -> dict[str, object]:
    """Returns `pid` and `host` of the process that has the lock. One that has just taken it may not
    have written them yet, and one that was killed has left its own.
    """
    owner: dict[str, object] = {"pid": "unknown", "host": "unknown"}
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, TypeError):
            owner = {**owner, **json.loads(os.pread(lock, 1000, 0))}
            if owner["host"] != socket.gethostname() or _is_alive(owner["pid"]):
                return owner
        time.sleep(0.01)
    return owner


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # else it is somebody else's
        return not isinstance(error, ProcessLookupError)
    return True


def _probe(place: Path) -> None:
    """Writes a file without a name into the directory `place`."""
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        file.write(b"probe")


@contextlib.contextmanager
def _refusing(place: Path) -> Iterator[None]:
    """Before the first step, what cannot be written refuses the run."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the output directory {str(place)!r} cannot be written: {error.strerror}. Choose "
            "another output_dir."
        ) from error
