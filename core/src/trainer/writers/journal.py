"""What was logged, as `trainer.logged` gives it: read from `metrics.jsonl`, or of a run without one
kept in memory.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from trainer_callback import LogRecord

from .metrics_file import MetricsFile

__all__ = ["Journal"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST_IN_MEMORY: Final = 10_000


class Journal:
    """The log events of a run so far.

    Of the file it keeps one place: the number of an event, of its line, and of the first byte.
    """

    def __init__(self, file: MetricsFile | None) -> None:
        """Reads from `file`; None: keeps in memory what `add` is given."""
        self._file = file
        self._kept: deque[LogRecord] = deque(maxlen=_MOST_IN_MEMORY)
        self._dropped = False
        self._mark = (0, 0, 0)

    @property
    def is_in_memory(self) -> bool:
        """Whether what is logged has to be added."""
        return self._file is None

    def start(self, states: Mapping[str, Any]) -> None:
        """Goes to where a snapshot was taken, before any callback is called.

        Args:
            states: state key -> state of each callback, of the snapshot; empty at a fresh start.
        """
        self._kept.clear()
        self._dropped, self._mark = False, (0, 0, 0)
        if self._file is not None:
            state = states.get(MetricsFile.__name__)  # its state key
            self._file.rewind(state if isinstance(state, Mapping) else {})

    def count(self) -> int:
        """Returns how many events there are; for snapshots that do not say it."""
        return 0 if self._file is None else sum(1 for _ in self._file.read_lines())

    def add(self, record: LogRecord) -> None:
        """Keeps a record in memory."""
        self._dropped = self._dropped or len(self._kept) == _MOST_IN_MEMORY
        self._kept.append(record)

    def read(self, since: int) -> Iterator[LogRecord]:
        """Returns the events from number `since` on.

        Raises:
            RuntimeError: memory has not kept them all.
        """
        if self._file is not None:
            return self._read(self._file, since)
        kept = self._kept.copy()
        if self._dropped and since < kept[0].event:
            raise RuntimeError(
                f"trainer.logged: a run without output_dir keeps its last {_MOST_IN_MEMORY} events,"
                f" from number {kept[0].event} on, and {since} is before. Ask more often, or give "
                "the run an output_dir."
            )
        return (record for record in kept if record.event >= since)

    def _read(self, file: MetricsFile, since: int) -> Iterator[LogRecord]:
        event, number, place = self._mark  # trackers ask often, and for the end alone
        if since < event:
            number = place = 0
        for line in file.read_lines(place):
            number, place = number + 1, place + len(line) + 1
            try:
                record = _parse(line, number - 1)
            except (ValueError, KeyError, TypeError, AttributeError):
                text = "%s: line %d is none that a run has written, and is left out."
                logger.warning(text, file.path, number)
                continue
            if record is not None and record.event >= since:
                self._mark = (record.event + 1, number, place)
                yield record


def _parse(line: bytes, number: int) -> LogRecord | None:
    """Returns the event of a line, or None where it says how a run ended. An older version wrote no
    number: its lines are counted.
    """
    found = json.loads(line)
    if isinstance(found.get("callback_costs"), dict):
        return None
    texts = found.pop("text") if isinstance(found.get("text"), dict) else {}
    step, epoch = found.pop("step"), found.pop("epoch")
    event, time = found.pop("_event", number), found.pop("_time", None)
    metrics = {name: float(value) for name, value in found.items()}  # "nan" and "inf", too
    return LogRecord(event, time, step, epoch, metrics, texts)
