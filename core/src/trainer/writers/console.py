"""What a person sees while a run goes on: a progress bar on a terminal that can draw one, plain
lines elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from trainer_callback import TrainerCallback, TrainerProtocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["ProgressCallback"]

_SECONDS_BETWEEN_LINES: Final = (5.0, 60.0)
"""At the beginning, and of a long run."""


class ProgressCallback(TrainerCallback):
    """Shows loss, validation loss, speed and time left."""

    critical = False
    state_key: str | None = "trainer.progress"  # the class name is left to plugins

    def __init__(
        self,
        total_steps: int,
        items_per_step: int = 1,
        unit: str = "updates",
        console: Console | None = None,
    ) -> None:
        """Makes a display.

        Args:
            total_steps: updates of the whole run, if nothing ends it early
            items_per_step: what one update gets through, counted in `unit`
            unit: what the speed is counted in, such as tokens
            console: where to; default standard error
        """
        if console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self.total_steps = total_steps
        self.items_per_step = items_per_step
        self.unit = unit
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first_step = 0
        self._started = self._last_line = 0.0

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._first_step = trainer.step
        self._started = self._last_line = time.monotonic()
        if not self._console.is_interactive:  # a pipe, or a terminal that is dumb
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._bar = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            expand=True,
            console=self._console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(
            "", total=self.total_steps, completed=trainer.step, status=""
        )
        self._bar.start()

    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
        else:
            self._print_line(trainer)

    def on_validation_start(self, trainer: TrainerProtocol) -> None:
        if self._bar is None:
            self._print_line(trainer, "validating")

    def on_log(self, trainer: TrainerProtocol, metrics: Mapping[str, float], step: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, status=self._status(trainer))
        elif "val_loss" in metrics:
            self._print_line(trainer, due=True)

    def _print_line(self, trainer: TrainerProtocol, what: str = "", *, due: bool = False) -> None:
        now = time.monotonic()
        shortest, longest = _SECONDS_BETWEEN_LINES
        pause = min(longest, max(shortest, (now - self._started) / 20))
        if not due and now - self._last_line < pause:
            return
        self._last_line = now
        end = what or self._time_left(trainer.step)
        self._console.print(
            f"update {trainer.step}/{self.total_steps}  {self._status(trainer)}  {end}",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _status(self, trainer: TrainerProtocol) -> str:
        known = trainer.metrics
        shown = [
            f"{name.replace('_', ' ')} {known[name]:.4f}"
            for name in ("loss", "val_loss")
            if name in known
        ]
        speed = self._speed(trainer.step)
        return "  ".join([f"epoch {trainer.epoch}", *shown, f"{speed:,.0f} {self.unit}/s"])

    def _speed(self, step: int) -> float:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return (step - self._first_step) * self.items_per_step / elapsed

    def _time_left(self, step: int) -> str:
        speed = self._speed(step)
        if speed == 0:
            return ""
        seconds = int(max(self.total_steps - step, 0) * self.items_per_step / speed)
        return f"{seconds // 60}:{seconds % 60:02d} left"
