"""What a tracker may use of the run: a part of `TrainerProtocol`. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from .records import CallbackInfo, LogRecord

__all__ = ["TrackedRun"]


class TrackedRun(Protocol):
    """The run as a whole: which it is, what it is made of, what it has logged, and what is done for
    it in the background.
    """

    @property
    def run_id(self) -> str:
        """What tells this run from all others: twelve lower-case hexadecimal digits, the same after
        each resume in its `output_dir` and in all processes. A resume into another directory, and
        `overwrite`, begin a run of another id; without `output_dir` each start does.
        """
        ...

    @property
    def run_name(self) -> str:
        """The run's name for people: the setting `run_name`, else the name of `output_dir`, else
        `run_id`.
        """
        ...

    @property
    def callbacks(self) -> Mapping[str, CallbackInfo]:
        """All callbacks of the run by their names, in call order, those that are switched off and
        the trainer's own included; read-only.
        """
        ...

    @property
    def hyperparameters(self) -> Mapping[str, object]:
        """The settings of the run as one flat mapping for trackers.

        The values are None, bool, int, float or str (of a list its text), and the same after a
        resume:

        - the settings of `TrainerConfig` under their names, but for the run's place and name, and
          `world_size`;
        - `optimizer`: the class; `optimizer.lr` and so on: settings of its first group, and
          `optimizer.group1.lr` of another one where they differ. The learning rate is the one that
          the schedule is built on. Several have names: `optimizer/NAME.lr`;
        - `scheduler` and `scheduler.step_size` in the same way;
        - `parameters` and `trained_parameters`: how many numbers the model has;
        - `NAME.option` of each callback;
        - what the command, or `Trainer(hyperparameters=...)`, adds.

        Names that end with password, secret, token, api_key or credentials are left out.
        """
        ...

    def logged(self, since: int = 0) -> Iterator[LogRecord]:
        """Yields what this run has logged, each event once, in the order in which it was written;
        from any thread, in every hook. What a killed run logged behind the snapshot of a resume is
        gone, and its numbers come again.

        It reads `metrics.jsonl` of `output_dir`, and lines that a full disk keeps in memory. A run
        without `output_dir` keeps its last 10,000 events. What a run logged elsewhere, before it
        was resumed into this directory, is not there.

        Args:
            since: the number of the first event that is wanted.

        Raises:
            TypeError: `since` is no such number.
            RuntimeError: this is not the main process, or memory has not kept them all.
        """
        ...

    def submit(self, callback: object, function: Callable[..., object], *arguments: Any) -> bool:
        """Lets a background thread of `callback` call `function(*arguments)`, behind what it was
        given before: for networks and slow disks, so that no hook waits. The thread is made at the
        first call. Never waits.

        What a job raises is a failure of that callback, at the next boundary, and its other jobs
        are dropped; so are those of one that is switched off. A job may call `trainer.log`, and
        reads of `trainer` what is the run's and does not change; nothing else. The end of a run
        waits 15 seconds at most, for all callbacks together, and says what was not done.

        Args:
            callback: who submits: `self`.
            function: the job. Give it what it needs as arguments: it is called later.

        Returns:
            Whether it was taken: False where 1,000 jobs of this callback wait already, one has
            failed, or it is switched off.

        Raises:
            TypeError: `function` cannot be called, or `callback` is none of this run's.
            RuntimeError: the run is over, or this is another process.
        """
        ...

    def hold_snapshot(self, path: str | Path) -> AbstractContextManager[Path]:
        """Keeps retention away from a snapshot of this run, from this call to the exit of the
        context, in whose `with` it is the path: for whoever copies it elsewhere.

        Without it a path that `on_snapshot_saved` is called with lives until `keep_snapshots` newer
        ones are durable. It may be called in any thread, several times for one path, and handed on:
        `trainer.submit(self, self.upload, trainer.hold_snapshot(path))`. What is held at the end of
        the run is removed by its next resume; what was of a history that a resume has left, at the
        next snapshot.

        Raises:
            SnapshotError: it is gone, is no snapshot of this run, or the run has no `output_dir`.
            RuntimeError: this is not the main process, or one that was forked off.
        """
        ...
