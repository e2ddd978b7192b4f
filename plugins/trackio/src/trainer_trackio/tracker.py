"""One run in trackio: what it has, and what is added. Lives in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from trainer_callback import LogRecord, serve_tracker

__all__ = ["TrackioTracker"]


class TrackioTracker:
    """Adds to the run of trackio that has this run's id. Each event has its number in the
    database, by which it is known again; trackio ignores one that it has.

    Args:
        settings: the configuration.
    """

    def __init__(
        self, project: str, *, run_id: str, run_name: str, settings: Mapping[str, object]
    ) -> None:
        self._project = project
        self._run_id, self._run_name = run_id, run_name
        self._settings = dict(settings)

    def start(self) -> None:
        """Loads trackio, and makes a database that is not there."""
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.init_db(self._project)

    def open(self, known: int) -> int:
        """Returns how many events there are; removes a run that has more than are known."""
        from trackio.sqlite_storage import SQLiteStorage

        query = f"SELECT MAX(log_id) AS last FROM metrics WHERE run_id = '{self._run_id}'"
        last = SQLiteStorage.query_project(self._project, query)["rows"][0]["last"]
        count = 0 if last is None else int(last.rpartition("-")[2]) + 1
        if count <= known:
            return count
        SQLiteStorage.delete_run(self._project, self._run_name, run_id=self._run_id)
        return 0

    def send(self, records: Sequence[LogRecord]) -> None:
        """Adds events, in one transaction."""
        from trackio.sqlite_storage import SQLiteStorage

        stamps = [datetime.fromtimestamp(each.time or 0.0, timezone.utc) for each in records]
        SQLiteStorage.bulk_log(
            project=self._project,
            run=self._run_name,
            run_id=self._run_id,
            metrics_list=[_make_row(each) for each in records],
            steps=[each.step for each in records],
            timestamps=[stamp.isoformat() for stamp in stamps],
            log_ids=[f"{self._run_id}-{each.event:012d}" for each in records],
            config=self._settings,
        )

    def finish(self, status: str) -> None:
        """Does nothing: trackio knows no end of a run."""

    def save_final(self, path: Path) -> None:
        """Keeps the files of the finished model as an artefact."""
        from trackio.run import Run

        run = Run(None, self._project, None, name=self._run_name, run_id=self._run_id)
        run.log_artifact(path, f"{self._run_name}-final", "model")

    def close(self) -> None:
        """It holds nothing."""


def _make_row(record: LogRecord) -> dict[str, object]:
    texts = {  # as trackio's `Markdown` is kept
        name: {"_type": "trackio.markdown", "_value": text} for name, text in record.texts.items()
    }
    return {**record.metrics, **texts}


if __name__ == "__main__":
    serve_tracker(TrackioTracker)
