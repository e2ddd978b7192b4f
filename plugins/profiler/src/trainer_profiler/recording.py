"""One recording of torch.profiler: its phases, its trace and its table. Knows no trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

__all__ = ["Recording"]

_PHASES: Final = ("RECORD", "RECORD_AND_SAVE")


class Recording:
    """A torch profiler that is on: first to warm up, then to record.

    Attributes:
        updates: those that have been recorded.
    """

    def __init__(self, warmup: int, active: int, done: int, **settings: Any) -> None:
        """Starts it.

        Args:
            warmup: updates whose records are thrown away.
            active: updates that are recorded.
            done: updates of these that were before a resume.
            settings: of `torch.profiler.profile`.
        """
        from torch.profiler import profile, schedule

        plan = schedule(wait=0, warmup=warmup, active=active, repeat=1)
        self.updates: list[int] = []
        self._phase: Any = None
        self._profile: Any = profile(schedule=lambda step: plan(step + done), **settings)
        self._profile.start()

    @property
    def records(self) -> bool:
        """Whether this update is recorded, and not only warmed up in."""
        return self._profile.current_action.name in _PHASES

    def enter(self, phase: str | None) -> None:
        """Ends the phase that is on, and begins another; None: none."""
        from torch.profiler import record_function

        if self._phase is not None:
            self._phase.__exit__(None, None, None)
        self._phase = None
        if phase is not None:
            self._phase = record_function(phase)
            self._phase.__enter__()

    def end_update(self, step: int, *, is_last: bool) -> None:
        """Goes on to the next update; behind the last one `stop` follows."""
        if self.records:
            self.updates.append(step)
        if not is_last:
            self._profile.step()

    def stop(self) -> None:
        """Ends it, whatever state it is in."""
        self.enter(None)
        self._profile.stop()

    def write(self, path: Path) -> None:
        """Writes the trace; a file that is there is whole.

        Raises:
            OSError: it could not be written. torch says nothing then.
        """
        part = path.with_suffix(".part")
        try:
            self._profile.export_chrome_trace(str(part))
            if not part.is_file() or not part.read_bytes().rstrip().endswith(b"}"):
                raise OSError(f"the trace could not be written to {path}. Is the disk full?")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def table(self, *, by: str, by_shape: bool) -> str:
        """Returns a table of the operators that took longest."""
        averages = self._profile.key_averages(group_by_input_shape=by_shape)
        return str(averages.table(sort_by=f"self_{by}_time_total", row_limit=15))
