"""Fixed points: what every process of a run has to come to, in the same order. Who comes where is
exchanged first, so that processes at different points do not wait for, or take, each other's data.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from trainer_callback import RunError

__all__ = ["MOST_VALUES", "FixedPointError", "FixedPoints"]

logger: logging.Logger = logging.getLogger("trainer")

MOST_VALUES: Final = 7
"""Numbers that can be exchanged at a fixed point itself."""
_FORM: Final = struct.Struct(f"=3Bx196s{MOST_VALUES}d")
"""Kind, ahead, number of values, name, values: 256 bytes."""
_PATIENCE: Final = timedelta(seconds=3)
_WARN_AFTER_SECONDS: Final = 10.0
"""Seconds that processes seldom come apart between two hooks."""


class FixedPointError(RunError):
    """A process waits at a point to which another one does not come; the message names it."""


@dataclass(frozen=True)
class _Arrival:
    """What each process says of itself at a fixed point; 256 bytes, so that all can be exchanged
    before anybody knows where the others are.

    Attributes:
        kind: 0: the trainer's own point; 1: a callback has called; 2: this process has failed;
            3: it has switched a callback off and goes on to where it waits for all.
        ahead: it has switched off a callback that others have not.
        name: of the point, or of the failure.
        values: up to 7 numbers.
    """

    kind: int
    ahead: bool
    name: str
    values: Sequence[float] = ()

    def pack(self) -> torch.Tensor:
        count = len(self.values)
        values = [*self.values, *[0.0] * (MOST_VALUES - count)]
        packed = _FORM.pack(self.kind, self.ahead, count, self.name.encode(), *values)
        return torch.frombuffer(bytearray(packed), dtype=torch.uint8)

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> _Arrival:
        kind, ahead, count, name, *values = _FORM.unpack(packed.numpy().tobytes())
        text = name.rstrip(b"\0").decode(errors="ignore")
        return cls(kind, bool(ahead), text, values[:count])


class FixedPoints:
    """The fixed points of one group of processes, on the CPU, that nobody else uses.

    Attributes:
        is_ahead: whether this process has switched off a callback that others have not.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.is_ahead: Callable[[], bool] = lambda: False
        self._announced = False
        self._pending: list[Any] = []
        self._failed: str | None = None

    def announce(self) -> None:
        """Tells those that wait for a callback which is switched off here that nobody comes: this
        process goes on to something where it waits for them, and which is no fixed point.
        """
        if not self._announced and self.is_ahead():
            self._announced = True
            self._exchange(_Arrival(3, True, "the next forward pass"))

    def start(self) -> None:
        """Forgets a failure of an earlier run."""
        self._failed = None

    def fail(self, error: BaseException) -> None:
        """Tells the others, at their next fixed point, that this process will come to none any
        more; waits a short time for them to hear it.
        """
        if self._failed is not None:
            return
        self._failed = f"this process has failed: {type(error).__name__}"
        arrival = _Arrival(2, False, f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):  # another process has died
            work, _ = self._exchange(arrival, _PATIENCE)
            end = time.monotonic() + _PATIENCE.total_seconds()
            while not work.is_completed() and time.monotonic() < end:
                time.sleep(0.01)

    def meet(
        self, point: str, values: Sequence[float] = (), *, by_callback: bool = False
    ) -> list[Sequence[float]]:
        """Waits for all processes at `point`; returns their values, by rank.

        Raises:
            FixedPointError: one has failed, or does not come here.
        """
        while True:
            if self._failed is not None:
                raise FixedPointError(f"nobody comes to {point}: {self._failed}.")
            own = _Arrival(int(by_callback), self.is_ahead(), point, values)
            self._announced = self._announced and own.ahead
            work, found = self._exchange(own)
            if by_callback:
                self._await_others(work, point)
            work.wait()
            arrived = [_Arrival.unpack(each) for each in found]
            if all(each.kind < 2 and each.name == arrived[0].name for each in arrived):
                return [each.values for each in arrived]
            self._resolve(arrived)

    def _await_others(self, work: dist.Work, point: str) -> None:
        """Says so once, where the others do not come for a while: they may be in a sum over all
        processes, where they wait for this one and hear of nothing.
        """
        end, pause = time.monotonic() + _WARN_AFTER_SECONDS, 0.0001
        while not work.is_completed() and time.monotonic() < end:
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        if not work.is_completed():
            logger.warning(
                "waiting for another process at %s for %.0f seconds: it may wait for this one "
                "elsewhere. If this is called in some processes only, end the run and call it in "
                "all of them, or in none.",
                *(point, _WARN_AFTER_SECONDS),
            )

    def leave(self, what: str) -> None:
        """Waits a short time for the others to leave their loops by `what`, as this process does.

        Raises:
            FixedPointError: they do not.
        """
        point = f"the end of the loop by {what}"
        work, found = self._exchange(_Arrival(0, self.is_ahead(), point), _PATIENCE)
        with contextlib.suppress(RuntimeError):  # nobody came in that time
            work.wait(_PATIENCE)
            if all(_Arrival.unpack(each).name == point for each in found):
                return
        raise FixedPointError(
            f"this process has left its loop by {what}, and another one has not. Ask for the end "
            "by run.stop(reason), which all of them hear."
        )

    def _exchange(
        self, own: _Arrival, patience: timedelta | None = None
    ) -> tuple[dist.Work, list[torch.Tensor]]:
        """Sends `own` to all processes and gets theirs, in the background."""
        packed = own.pack()
        found = [torch.empty_like(packed) for _ in range(self._group.size())]
        options = dist.distributed_c10d.AllgatherOptions()  # type: ignore[attr-defined]
        if patience is not None:
            options.timeout = patience
        work = self._group.allgather([found], [packed], options)
        self._pending = [each for each in self._pending if not each[0].is_completed()]
        self._pending.append((work, found, packed))
        return work, found

    def _resolve(self, arrived: Sequence[_Arrival]) -> None:
        """Returns where the point has to be tried again, because others will still come to it.

        Raises:
            FixedPointError: this process waits in vain.
        """
        own = arrived[self._group.rank()]
        for rank, each in enumerate(arrived):
            if each.kind == 2:
                self._failed = f"process {rank} has failed ({each.name})"
                raise FixedPointError(f"nobody comes to {own.name}: {self._failed}.")
        called = [each for each in arrived if each.kind == 1]
        behind = [each for each in called if not each.ahead] or called
        if any(each is own for each in behind):
            rank, other = next((r, a) for r, a in enumerate(arrived) if a.name != own.name)
            raise FixedPointError(
                f"process {rank} is at {other.name} and does not come to {own.name}: a callback "
                "has failed in another process, or this is called in some only. Call it in all of "
                "them, or in none."
            )
        if not called and all(each.kind == 0 for each in arrived):
            rank, other = next((r, a) for r, a in enumerate(arrived) if a.name != arrived[0].name)
            raise FixedPointError(
                f"process 0 is at {arrived[0].name} and process {rank} at {other.name}: they "
                "would wait for each other. Give all of them the same data, options and callbacks."
            )
