"""What a run logs on its way to a tracker: in order, from a thread of the trainer's, again after a
failure. This room knows no tracker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from .protocol import TrainerProtocol
from .records import LogRecord

__all__ = ["Outbox", "Tracker"]

_MOST_AT_ONCE: Final = 500
_PAUSE: Final = 30.0
_SLOW: Final = 10e6
"""Bytes per second of a network that is slow, but not too slow for a finished model."""
_ALL: Final = "not all of it was sent"
_FINAL: Final = "the finished model was not sent"
_REMEDIES: Final = {
    _ALL: "metrics.jsonl has it; a resume in the same output_dir sends the rest.",
    _FINAL: "It is in OUTPUT_DIR/final.",
}


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
        once, perhaps while another call is under way. What it raises is told.
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
        self._is_waiting = self._was_told = False
        self._retry_at = 0.0
        self._unsent = ""  # what is, once the run has ended
        self._error: Exception | None = None
        self._final_was_tried = threading.Event()

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
        self._unsent = _ALL
        self._trainer.submit(self._callback, self._end, result.status)

    def send_final(self, path: Path) -> None:
        """Sends the finished model, where the tracker has everything else. For `on_final_saved`.
        It waits as long as a slow network takes for so much; some seconds come at the run's end.
        """
        if self._unsent:
            return
        self._unsent = _FINAL
        if self._trainer.submit(self._callback, self._send_final, path):
            size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
            self._final_was_tried.wait(size / _SLOW)

    def close(self) -> None:
        """Lets the tracker give back what it holds, and says what was not sent. For `close`."""
        unsent = self._unsent
        try:
            self._tracker.close()
        except Exception as error:
            self._error, unsent = error, _ALL
        if unsent:
            cause = f": {_describe(self._error)}" if self._error is not None else ""
            self._logger.warning(
                "%s: the run has ended, and %s%s. %s",
                *(self._name, unsent, cause, _REMEDIES[unsent]),
            )

    def _allow(self, limit: int) -> None:
        self._limit = limit
        if self._is_waiting or time.monotonic() < self._retry_at:
            return
        self._is_waiting = True  # before the other thread may say that it is not
        if not self._trainer.submit(self._callback, self._send):
            self._is_waiting = False

    def _send(self) -> None:
        self._is_waiting = False  # what is allowed from here on needs another turn
        if time.monotonic() < self._retry_at:  # it has failed since this was submitted
            return
        try:
            if self._next is None:
                self._next = self._tracker.open(self._known)
            for records in self._take(self._next, self._limit):
                self._tracker.send(records)
                self._next = records[-1].event + 1
                self._known = max(self._known, self._next)
            self._retry_at, self._error = 0.0, None
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
        if self._next is None:
            return
        try:
            self._tracker.finish(status)
            self._unsent = ""
        except Exception as error:
            self._error = error

    def _send_final(self, path: Path) -> None:
        try:
            self._tracker.save_final(path)
            self._unsent = ""
        except Exception as error:
            self._error = error
        self._final_was_tried.set()

    def _tell(self, error: Exception) -> None:
        self._error = error
        if not self._was_told and not self._unsent:
            self._logger.warning(
                "%s: cannot send: %s. The run goes on; it is tried again every %d s, and at the "
                "end.",
                *(self._name, _describe(error), _PAUSE),
            )
            self._was_told = True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"
