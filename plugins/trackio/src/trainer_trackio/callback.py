"""The callback: its options, and where trackio keeps what it is sent."""

from __future__ import annotations

from pathlib import Path

from trainer_callback import TrackerCallback, TrackerProcess, TrainerProtocol
from trainer_callback.values import check_types

__all__ = ["TrackioCallback"]


class TrackioCallback(TrackerCallback):
    """Writes what the run logs to a database of trackio, as it comes: settings, metrics, texts, and
    the finished model. A run that was killed and resumed has each event once.

    Args:
        project: name of the project
        directory: folder of the database, TRACKIO_DIR; without it OUTPUT_DIR/trackio
        artifacts: keep the files of final/ too
    """

    name = "trackio"
    client = "trackio"
    requirement = "trackio>=0.43"

    def __init__(
        self, project: str = "trainer", *, directory: str | None = None, artifacts: bool = True
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is of another type.
        """
        check_types(TrackioCallback, locals(), "trackio_")
        self.project = project
        self.directory = directory
        self.artifacts = artifacts

    def make_tracker(self, trainer: TrainerProtocol, folder: Path) -> TrackerProcess:
        """Returns the tracker, not open yet."""
        directory = Path(self.directory).expanduser().resolve() if self.directory else folder
        arguments = {
            "project": self.project,
            "run_id": trainer.run_id,
            "run_name": trainer.run_name,
            "settings": dict(trainer.hyperparameters),
        }
        return TrackerProcess(
            "trainer_trackio.tracker",
            arguments,
            log=folder / "client.log",
            environment={"TRACKIO_DIR": str(directory)},  # read once, when trackio is imported
        )
