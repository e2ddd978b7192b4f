"""Whether and why a run ends at a boundary: signals, the loop's own request, callbacks, limits.
That the epochs are used up `passes` knows; what an exception or a `break` ends, `lifetime`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy

from trainer_callback import StopRequest
from trainer_callback.calls.dispatch import Answer
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.errors import show

from ..config import TrainerConfig
from ..counters import Position
from ..processes.ranks import Ranks
from ..processes.signals import SignalFlags
from ..result import Status, Stop

__all__ = ["StopDecider"]

_GRAVEST_FIRST: Final[tuple[Status, ...]] = ("terminated", "interrupted", "stopped", "finished")


class StopDecider:
    """Reads signals, limits and the callbacks' answers. Nothing is latched: each decision is made
    afresh.

    Attributes:
        asked: the end that the loop itself has asked for, or None.
    """

    def __init__(
        self,
        config: TrainerConfig,
        callbacks: CallbackManager,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._config = config
        self._callbacks = callbacks
        self.start(SignalFlags())

    def start(self, signals: SignalFlags) -> None:
        """A run begins: the clock of `max_time` starts, and nobody has asked for the end.

        Args:
            signals: those of the run.
        """
        self._signals = signals
        self.asked: Stop | None = None
        self._reserved = 0.0
        self._switched_off = len(self._callbacks.switched_off)
        self._ranks.watch(lambda: self._has_switched_off)
        self._started = time.monotonic()

    def reserve(self, seconds: float) -> None:
        """Takes note of how long a validation took: `max_time` leaves as much for the last one."""
        self._reserved = max(self._reserved, seconds)

    def is_signalled(self) -> bool:
        """Returns whether a signal has asked for the end, in any process; asked between the batches
        of a validation.
        """
        return bool(self._ranks.highest(self._signals.raised, "signals"))

    def agree(self, stop: Stop | None, *, snapshot_due: bool) -> tuple[Stop | None, bool]:
        """Returns the end, and whether a snapshot is taken, that all processes agree on: what any
        of them wants. Of several ends it is the gravest, of the lowest rank. Callbacks that one of
        them has switched off are off in all.
        """
        if self._ranks.is_alone:
            return stop, snapshot_due or stop is not None
        news = stop is not None or self._has_switched_off
        wanted = self._ranks.highest(2 if news else int(snapshot_due), "decision")
        if wanted < 2:
            return None, bool(wanted)
        own = (stop, snapshot_due, self._callbacks.switched_off)
        answers = self._ranks.gather(own, "decision")
        self._switch_off([names for _, _, names in answers])
        stops = [each for each, _, _ in answers if each is not None]
        if not stops:
            return None, any(due for _, due, _ in answers)
        return min(stops, key=lambda each: _GRAVEST_FIRST.index(each.status)), True

    def agree_on_callbacks(self) -> None:
        """Switches off, in all processes, the callbacks that one of them has switched off: some of
        their hooks wait for each other.
        """
        if self._ranks.highest(self._has_switched_off, "callbacks"):
            self._switch_off(self._ranks.gather(self._callbacks.switched_off, "callbacks"))

    @property
    def _has_switched_off(self) -> bool:
        return len(self._callbacks.switched_off) > self._switched_off

    def _switch_off(self, failed: Sequence[Sequence[str]]) -> None:
        self._callbacks.switch_off([name for names in failed for name in names])
        self._switched_off = len(self._callbacks.switched_off)

    def read_signals(self) -> Stop | None:
        """Returns the end that a signal asks for, or None; nobody else is asked."""
        if self._signals.terminated:
            return Stop("terminated", "SIGTERM")
        if self._signals.interrupted:
            return Stop("interrupted", "SIGINT")
        return None

    def decide(self, position: Position, answers: Sequence[Answer]) -> Stop | None:
        """Returns why the run ends here, or None. A signal goes before the loop itself, that before
        a callback, a callback before a limit.

        Args:
            answers: what `should_stop_training` returned, of every callback.

        Raises:
            CallbackError: an answer is no answer.
        """
        asked = self._read(answers) if answers else None
        config = self._config
        if self._signals.terminated or self._signals.interrupted:
            return self.read_signals()
        if self.asked is not None:
            return self.asked
        if asked is not None and position.epochs_done >= config.min_epochs:
            return asked
        if config.max_steps is not None and position.step >= config.max_steps:
            return Stop("finished", "max_steps")
        if config.max_time is not None:
            left = config.max_time - (time.monotonic() - self._started)
            if left <= self._reserved:
                return Stop("finished", "max_time")
        return None

    def _read(self, answers: Sequence[Answer]) -> Stop | None:
        """Returns the first request among `answers`; a wrong one is its callback's failure."""
        first: Stop | None = None
        for plugin, answer in answers:
            if isinstance(answer, StopRequest):
                first = first or Stop("stopped", answer.reason, answer.detail, plugin.name)
            elif isinstance(answer, (bool, numpy.bool_)):
                if answer:
                    first = first or Stop("stopped", "callback", by=plugin.name)
            else:
                wanted = "it must answer a bool, None or a StopRequest"
                error = TypeError(f"answered {show(answer)}; {wanted}")
                self._callbacks.caught(plugin, "should_stop_training", error)
                self._callbacks.finish()
        return first
