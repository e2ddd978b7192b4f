"""What changes while the monitor runs: one look tells what a snapshot keeps."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from .history import History
from .verdicts import Verdict

__all__ = ["MonitorState"]

_FORMAT: Final = 1


@dataclass(eq=False)
class MonitorState:
    """The state of a `GradientMonitorCallback`.

    Attributes:
        fingerprint: level, depth, filters and order of the norm: a history of others means nothing.
        history: of the measured updates.
        recent_norms: total norms of the last measured updates that were finite and taken.
        verdicts: layer -> its verdict at the last update that was measured and taken.
        measured: updates measured.
        updates: updates seen.
        updates_since: updates seen since the last measured one.
        clipped: updates clipped, up to the last measured one.
        clipped_since: updates clipped since, as far as they were fetched from the device.
        skipped: updates that the loss scaler, or the trainer, did not take.
        skipped_in_a_row: of these, the last in a row.
        nonfinite_measured: updates measured that had a NaN or an infinity.
        nonfinite_in_a_row: of these, the last in a row.
        disconnected: parameters that got no gradient at the last measured update.
        last_step: the last measured update.
        loss_scale: its loss scale; None where losses are not scaled.
    """

    fingerprint: dict[str, Any]
    history: History
    recent_norms: deque[float]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    measured: int = 0
    updates: int = 0
    updates_since: int = 0
    clipped: int = 0
    clipped_since: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    nonfinite_measured: int = 0
    nonfinite_in_a_row: int = 0
    disconnected: list[str] = field(default_factory=list)
    last_step: int = 0
    loss_scale: float | None = None

    @classmethod
    def fresh(cls, fingerprint: dict[str, Any], rows: Sequence[str], capacity: int) -> MonitorState:
        return cls(fingerprint, History(rows, capacity), deque(maxlen=capacity))

    @property
    def running_median(self) -> float | None:
        """Of the total norm over the recent measured updates; None where there is none."""
        return statistics.median(self.recent_norms) if self.recent_norms else None

    def count_update(self, *, skipped: bool) -> None:
        """Takes note of an update, measured or not."""
        self.updates += 1
        self.updates_since += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def count_measured(
        self, step: int, clipped: int, loss_scale: float | None = None
    ) -> dict[str, int]:
        """Takes note of a measured update.

        Args:
            clipped: how many updates were clipped since the last one, beside `clipped_since`.

        Returns:
            What happened since the last one, and to the whole run.
        """
        clipped += self.clipped_since
        counts = {
            "updates": self.updates_since,
            "clipped_updates": clipped,
            "skipped_updates": self.skipped,
        }
        self.measured += 1
        self.last_step = step
        self.loss_scale = loss_scale
        self.clipped += clipped
        self.clipped_since = self.updates_since = 0
        return counts

    def remember(
        self, verdicts: dict[str, Verdict], disconnected: Sequence[str], *, nonfinite: bool
    ) -> None:
        """Takes note of what people were told, so that they are told what is new."""
        self.verdicts = verdicts
        self.disconnected = list(disconnected)
        self.nonfinite_measured += nonfinite
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if nonfinite else 0

    def to_plain(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "rows": list(self.history.rows),
            "history": self.history.to_plain(),
            "recent_norms": list(self.recent_norms),
            "verdicts": dict(self.verdicts),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_plain(self, plain: Mapping[str, Any]) -> bool:
        """Takes over what `to_plain` returned.

        Returns:
            Whether the history came along: not one of another level, filter or model. Counters
            always do.
        """
        if plain.get("format") != _FORMAT:
            return False
        for name in _COUNTERS:
            setattr(self, name, plain[name])
        self.recent_norms.extend(plain["recent_norms"])
        known = (plain["fingerprint"], plain["rows"])
        if known != (self.fingerprint, list(self.history.rows)):
            return False
        self.history.load_plain(plain["history"])
        self.verdicts = dict(plain["verdicts"])
        return True


_COUNTERS: Final = [each.name for each in fields(MonitorState)][4:]
"""All but the first four, which are no plain data as they are."""
