"""What a person sees while a run goes on: a bar in a terminal that can draw one and in a notebook,
plain lines elsewhere; in each of them a line with every metric behind an epoch and a validation.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl

from ..config import ConfigError
from .figures import fit, show_pairs, show_time, wrap
from .notebook import CellLine, is_notebook
from .terminal import BottomLine, Lines, is_terminal

__all__ = ["BarCallback", "ProgressCallback", "make_progress"]

_SECONDS_BETWEEN_LINES: Final = (5.0, 60.0)
"""At the beginning, and of a long run."""
_SECONDS_BETWEEN_DRAWS: Final = (0.1, 0.5)
"""In a terminal, and in a notebook, to which each one is a message."""
_SHORTEST_BAR, _LONGEST_BAR = 8, 40


def make_progress(
    shown: bool | None, *, items_per_update: int = 1, unit: str = "updates"
) -> ProgressCallback | None:
    """Returns what shows the progress of a run, in the form that suits standard error; None where
    nothing is to be shown, or there is no place for it.

    Args:
        shown: None: a bar in a terminal and in a notebook, lines elsewhere. True: a bar also where
            no terminal is seen. False: nothing.
        items_per_update: what one update gets through, counted in `unit`.
        unit: what the speed is counted in, such as tokens.

    Raises:
        ConfigError: `shown` is something else.
    """
    if shown is not None and not isinstance(shown, bool):
        raise ConfigError(
            f"progress must be None, True or False, got {shown!r}. None shows a bar or lines, "
            "whichever suits the place; False shows nothing."
        )
    if shown is False or sys.stderr is None:
        return None
    draws = shown or is_notebook() or _is_watched(sys.stderr)
    kind = BarCallback if draws else ProgressCallback
    return kind(items_per_update, unit, forced=bool(shown))


def _is_watched(file: Any) -> bool:
    """Whether `file` is a terminal that can draw a bar, and not the log of a server."""
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    is_log = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return is_terminal(file) and not is_dumb and not is_log


class _Display(Protocol):
    """A place for lines, and for one that is replaced. `width` is in characters; None: no limit."""

    @property
    def width(self) -> int | None: ...

    def write(self, text: str) -> None: ...

    def draw(self, text: str) -> None: ...

    def close(self) -> None: ...


class ProgressCallback(TrainerCallback):
    """Writes a line for each epoch and each validation, and some between where those take long."""

    critical = False
    logs_metrics: tuple[str, ...] | None = ()
    state_key: str | None = "trainer.progress"  # the class name is left to plugins

    def __init__(
        self, items_per_update: int = 1, unit: str = "updates", *, forced: bool = False
    ) -> None:
        """See `make_progress`."""
        self.items_per_update = items_per_update
        self.unit = unit
        self.forced = forced
        self._display: _Display | None = None
        self._found: dict[str, float] | None = None
        self._validated: set[str] = set()
        self._first_step = 0
        self._started = self._last = 0.0

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._display = self._open() if trainer.is_main_process and sys.stderr else None
        self._found = None
        self._first_step = trainer.step
        self._started = self._last = time.monotonic()

    def on_validation_start(self, trainer: TrainerProtocol) -> None:
        self._found, self._validated = {}, set()
        self._tell(trainer, "validating")

    def on_validation_end(self, trainer: TrainerProtocol, metrics: Mapping[str, float]) -> None:
        self._validated = {*metrics}
        if not metrics:  # it was cut short
            self._found = None

    def on_log(  # type: ignore[override]
        self, trainer: TrainerProtocol, metrics: Mapping[str, float]
    ) -> None:
        if "train_loss" in metrics:  # an epoch ends
            self._found = {**metrics, **(self._found or {})}
        elif self._found is None:
            self._tell(trainer)
        elif not self._validated or not self._validated <= metrics.keys():
            self._found.update(metrics)  # what others log in a validation
        else:
            shown = {**_losses(trainer, "loss"), **metrics, **self._found}
            pairs = show_pairs(_without_copies(shown))
            self._write([*self._place(trainer), *pairs, self._time(trainer)])
            self._found = None

    @hookimpl(trylast=True)  # others may log more in it
    def on_epoch_end(
        self,
        trainer: TrainerProtocol,
        epoch: int,
        train_loss: float,
        val_loss: float | None,
        metrics: Mapping[str, float],
    ) -> None:
        found, self._found = self._found or {}, None
        update, name = self._place(trainer)
        self._write([name, update, *show_pairs(_without_copies(found)), self._time(trainer)])

    def close(self) -> None:
        if self._display is not None:
            self._display.close()
        self._display = None

    def _open(self) -> _Display:
        return Lines(sys.stderr)

    def _tell(self, trainer: TrainerProtocol, what: str = "") -> None:
        """Says where the run is, where the last line was a while ago."""
        now = time.monotonic()
        shortest, longest = _SECONDS_BETWEEN_LINES
        if now - self._last >= min(longest, max(shortest, (now - self._started) / 20)):
            shown = show_pairs(_losses(trainer, "loss", "val_loss"))
            rest = (self._speed(trainer), what or self._time(trainer))
            self._write([*self._place(trainer), *shown, *rest])

    def _write(self, parts: Sequence[str]) -> None:
        self._last = time.monotonic()
        if self._display is not None:
            self._display.write(wrap(parts, self._display.width))

    def _place(self, trainer: TrainerProtocol) -> tuple[str, str]:
        total = _total(trainer)
        of_all = "" if total is None else f"/{total}"
        return f"update {trainer.step}{of_all}", f"epoch {trainer.epoch}"

    def _rate(self, trainer: TrainerProtocol) -> float:
        """Returns updates per second of this process."""
        return (trainer.step - self._first_step) / max(time.monotonic() - self._started, 1e-9)

    def _speed(self, trainer: TrainerProtocol) -> str:
        speed = self._rate(trainer) * self.items_per_update
        number = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        return f"{number} {self.unit}/s" if speed else ""

    def _time(self, trainer: TrainerProtocol) -> str:
        """Returns how long it takes yet; where that is not known, or nothing, how long it took."""
        total, rate = _total(trainer), self._rate(trainer)
        elapsed = time.monotonic() - self._started
        if total is None or total <= trainer.step or not rate:
            return f"after {show_time(elapsed)}"
        left, longest = (total - trainer.step) / rate, getattr(trainer.config, "max_time", None)
        if longest is not None:
            left = min(left, max(longest - elapsed, 0))
        return f"{show_time(left)} left"


class BarCallback(ProgressCallback):
    """Shows a bar as well, which stays below the lines."""

    _drawn = _pause = 0.0
    _is_over = False

    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        self._tell(trainer)

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        self._is_over = True  # `epoch` is a number of epochs now
        self._tell(trainer, f"after {show_time(time.monotonic() - self._started)}")

    def _open(self) -> _Display:
        self._is_over, in_cell = False, is_notebook()
        self._pause = _SECONDS_BETWEEN_DRAWS[in_cell]
        return CellLine() if in_cell else BottomLine(sys.stderr, forced=self.forced)

    def _tell(self, trainer: TrainerProtocol, what: str = "") -> None:
        """Draws the bar, unless it was drawn a moment ago and there is no news."""
        now = time.monotonic()
        if not what and now - self._drawn < self._pause:
            return
        self._drawn = now
        if self._display is not None:
            end = what or self._time(trainer)
            self._display.draw(self._describe(trainer, end, self._display.width or 0))

    def _describe(self, trainer: TrainerProtocol, end: str, width: int) -> str:
        """Returns the line, without what does not fit."""
        total, done = _total(trainer), trainer.step
        losses = show_pairs(_losses(trainer, "loss"))
        parts = [
            (3, "" if self._is_over else f"epoch {trainer.epoch}"),
            (0, f"update {done}" if total is None else f"{done}/{total}"),
            *((2, each) for each in losses),
            *((4, each) for each in show_pairs(_losses(trainer, "val_loss"))),
            (5, self._speed(trainer)),
            (1, end),
        ]
        if total is None:
            return "  ".join(fit(parts, width))
        shown = fit(parts, width - _SHORTEST_BAR - 2)
        bar = _bar(done / max(total, 1), min(width - len("  ".join(shown)) - 2, _LONGEST_BAR))
        place = shown.index(f"{done}/{total}") + 1 if f"{done}/{total}" in shown else 0
        return "  ".join([*shown[:place], bar, *shown[place:]])


def _bar(share: float, length: int) -> str:
    done = round(min(share, 1.0) * length)
    full, empty = ("█", "░") if _can_write("█░") else ("#", "-")
    return full * done + empty * (length - done)


def _can_write(text: str) -> bool:
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _losses(trainer: TrainerProtocol, *names: str) -> dict[str, float]:
    """Returns the metrics of these names, and those of each optimizer: `loss/NAME`."""
    known = trainer.metrics
    return {name: value for name, value in known.items() if name.partition("/")[0] in names}


def _without_copies(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics without `val_NAME` where they have SET/NAME, of which it is the first."""
    of_sets = {f"val_{name.rpartition('/')[2]}" for name in metrics if "/" in name}
    return {name: value for name, value in metrics.items() if name not in of_sets}


def _total(trainer: TrainerProtocol) -> int | None:
    """Returns the updates of the whole run, if nothing ends it early; None: nobody knows."""
    return trainer.max_steps
