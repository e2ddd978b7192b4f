"""One run in Weights & Biases: what it has, what is added, how it ended. Lives in a process of its
own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import LogRecord, serve_tracker

__all__ = ["WandbTracker"]

_COUNT: Final = "events.txt"
"""Beside a file of W&B that is whole: how many events of the run it and earlier ones have."""
_CODES: Final[Mapping[str, int]] = {"failed": 1, "interrupted": 130, "terminated": 143}


class WandbTracker:
    """Writes the run of W&B that has this run's id. The step of W&B, which has to rise, is the
    number of the event; the updates are a metric, over which all others are drawn.

    Args:
        settings: the configuration.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        mode: str,
        folder: str,
        *,
        run_id: str,
        run_name: str,
        settings: Mapping[str, object],
    ) -> None:
        self._folder = Path(folder)
        self._is_offline = mode == "offline"
        names = {"project": project, "entity": entity, "id": run_id, "name": run_name}
        self._arguments = {**names, "mode": mode, "config": dict(settings)}
        self._run: Any = None
        self._count = 0
        self._status = ""

    def start(self) -> None:
        """Loads W&B."""
        import wandb  # noqa: F401

    def open(self, known: int) -> int:
        """Starts a run, or goes on with it; returns how many events W&B has."""
        import wandb

        if self._is_offline:
            self._count = self._discard(known)
        quiet = {"console": "off", "silent": True, "save_code": False, "disable_git": True}
        lean = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
        limits = {"init_timeout": 10.0, "finish_timeout": 10.0, "finish_timeout_raises": True}
        self._run = wandb.init(
            **self._arguments,
            dir=str(self._folder.parent),
            resume="allow",
            settings=wandb.Settings(**quiet, **lean, **limits),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not self._is_offline:
            self._count = int(self._run.summary.get("_step", -1)) + 1
        return self._count

    def send(self, records: Sequence[LogRecord]) -> None:
        """Adds a row for each event."""
        for record in records:
            place = {"step": record.step, "epoch": record.epoch, "_timestamp": record.time}
            self._run.log({**record.metrics, **record.texts, **place}, step=record.event)
            self._count = record.event + 1

    def finish(self, status: str) -> None:
        """Notes the end for `close`, since the finished model comes before."""
        self._status = status

    def save_final(self, path: Path) -> None:
        """Adds the files of the finished model to those of the run."""
        self._run.save(f"{path}/*", base_path=str(path.parent), policy="end")

    def close(self) -> None:
        """Ends the run, and W&B's own process."""
        import wandb

        if self._run is not None and self._status:
            self._run.finish(exit_code=_CODES.get(self._status, 0))
            if self._is_offline:
                (Path(self._run.dir).parent / _COUNT).write_text(str(self._count))
        wandb.teardown()

    def _discard(self, known: int) -> int:
        """Removes the files of earlier lives, but for those that were synced; returns how many
        events these have.
        """
        count = 0
        for place in sorted(self._folder.glob(f"offline-run-*-{self._arguments['id']}")):
            if not any(place.glob("*.synced")):
                shutil.rmtree(place)
                continue
            note = place / _COUNT
            count = int(note.read_text()) if note.exists() else known + 1
            if count > known:
                raise RuntimeError(
                    f"{place} was synced, and has more than the snapshot that the run resumes "
                    "from; W&B takes nothing back. Resume into another output_dir, for a run of "
                    "another id, or remove the run from W&B and this folder"
                )
        return count


if __name__ == "__main__":
    serve_tracker(WandbTracker)
