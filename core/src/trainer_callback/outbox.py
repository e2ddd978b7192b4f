"""What a run logs on its way to a tracker: in order, from a thread of the trainer's, again after a
failure. This room knows no tracker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from .protocol import TrainerProtocol
from .records import LogRecord

__all__ = ["Outbox", "Tracker"]

_MOST_AT_ONCE: Final = 500
_PAUSE: Final = 30.0


class Tracker(Protocol):
    """What an `Outbox` sends to. One call at a time; all but `start` and `close` in a thread
    that is not the loop's. After an exception `open` comes before anything else.
    """

    def start(self) -> None:
        """Loads what it needs, and asks no network; called in the loop's thread, before the first
        step. What it raises refuses the run.
        """
        ...

    def open(self, known: int) -> int:
        """Finds or makes the run; returns the number of the first event that it does not have.

        Args:
            known: events with numbers below it may be there already. What is there from it on was
                taken back by a resume, or was sent and not answered.
        """
        ...

    def send(self, records: Sequence[LogRecord]) -> None:
        """Takes the next events."""
        ...

    def finish(self, status: str) -> None:
        """Everything was sent, and the run has ended: `TrainResult.status` says how."""
        ...

    def save_final(self, path: Path) -> None:
        """Takes the folder of the finished model, behind `finish`."""
        ...

    def close(self) -> None:
        """Gives back threads and processes, in whatever state it is; called in the loop's thread,
        once or not at all where it was never opened.
        """
        ...


class Outbox:
    """Sends what the run logs to a tracker, each event once, by `trainer.submit`.

    The events are read from `trainer.logged`, so that nothing is lost while a tracker cannot be
    reached: it is asked again later, told by a warning once, and after a resume gets the rest.

    Args:
        live: events are sent as they come. Else they wait for a snapshot that has them, or for the
            end of the run: what a killed run takes back was never sent then.
    """

    def __init__(
        self,
        trainer: TrainerProtocol,
        callback: object,
        tracker: Tracker,
        *,
        name: str,
        live: bool,
    ) -> None:
        self._trainer = trainer
        self._callback = callback
        self._tracker = tracker
        self._name = name
        self._live = live
        self._logger = logging.getLogger(f"trainer.{name}")
        self._logged = 0
        self._limit = self._known = 0
        self._snapshots: dict[int, int] = {}
        self._next: int | None = None  # None: the tracker is closed
        self._is_waiting = self._was_told = self._is_done = False
        self._retry_at = 0.0

    def start(self, resumed: bool) -> None:
        """Starts the tracker, and sends what a snapshot has given back. For `on_train_start`."""
        self._tracker.start()
        if resumed:
            self._logged = max((each.event + 1 for each in self._trainer.logged()), default=0)
        self._known = self._logged
        self._allow(self._logged)

    def note(self, event: int) -> None:
        """There is an event. For `on_log` and `on_log_text`; some microseconds."""
        self._logged = event + 1
        if self._live:
            self._allow(self._logged)

    def note_snapshot(self, step: int) -> None:
        """A snapshot has all events so far. For `on_snapshot_save`."""
        self._snapshots[step] = self._logged

    def note_saved(self, step: int) -> None:
        """That snapshot is durable. For `on_snapshot_saved`."""
        if not self._live:
            self._allow(max(self._limit, self._snapshots.pop(step, 0)))

    def finish(self, result: Any) -> None:
        """Sends the rest, and how the run has ended. For `on_train_end`."""
        self._limit, self._retry_at = self._logged, 0.0
        self._trainer.submit(self._callback, self._end, result.status)

    def send_final(self, path: Path) -> None:
        """Sends the finished model. For `on_final_saved`. Where the tracker has everything else, in
        the caller's thread, as long as it takes; else as a last job, which has some seconds.
        """
        if self._is_done:
            self._send_final(path)
        else:
            self._trainer.submit(self._callback, self._send_final, path)

    def close(self) -> None:
        """Lets the tracker give back what it holds. For `close`."""
        self._tracker.close()

    def _allow(self, limit: int) -> None:
        self._limit = limit
        if self._is_waiting or (self._retry_at and time.monotonic() < self._retry_at):
            return
        self._is_waiting = True  # before the other thread may say that it is not
        if not self._trainer.submit(self._callback, self._send):
            self._is_waiting = False

    def _send(self) -> None:
        self._is_waiting = False  # what is allowed from here on needs another turn
        try:
            if self._next is None:
                self._next = self._tracker.open(self._known)
            for records in self._take(self._next, self._limit):
                self._tracker.send(records)
                self._next = records[-1].event + 1
                self._known = max(self._known, self._next)
            self._retry_at = 0.0
        except Exception as error:
            self._next, self._retry_at = None, time.monotonic() + _PAUSE
            self._tell(error)

    def _take(self, since: int, limit: int) -> Iterator[Sequence[LogRecord]]:
        records: list[LogRecord] = []
        for record in self._trainer.logged(since) if since < limit else ():
            if record.event >= limit:
                break
            records.append(record)
            if len(records) == _MOST_AT_ONCE:
                yield records
                records = []
        if records:
            yield records

    def _end(self, status: str) -> None:
        self._send()
        try:
            if self._next is not None:
                self._tracker.finish(status)
                self._is_done = True
                return
        except Exception as error:
            self._was_told = False
            self._tell(error)
        self._logger.warning(
            "%s: the run has ended, and not all of it was sent. metrics.jsonl has it; a resume in "
            "the same output_dir sends the rest.",
            self._name,
        )

    def _send_final(self, path: Path) -> None:
        if not self._is_done:  # it was told that not all was sent
            return
        try:
            self._tracker.save_final(path)
        except Exception as error:
            self._was_told = False
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._was_told:
            self._logger.warning(
                "%s: cannot send: %s: %s. The run goes on; it is tried again every %d s, and at "
                "the end.",
                *(self._name, type(error).__name__, str(error)[:300], _PAUSE),
            )
        self._was_told = True
