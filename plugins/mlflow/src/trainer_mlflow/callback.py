"""The callback: its options, and where MLflow keeps what it is sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trainer_callback import TrackerCallback, TrackerProcess, TrainerProtocol
from trainer_callback.values import check_types

__all__ = ["MLflowCallback"]

_QUICK: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""For a server that does not answer: it is asked again later in any case."""


class MLflowCallback(TrackerCallback):
    """Sends what the run logs to MLflow: settings, metrics, texts, and the finished model.

    MLflow takes nothing back, so that by default events wait for a snapshot that has them: a run
    that was killed and resumed has each of them once.

    Args:
        tracking_uri: server or database, such as http://localhost:5000; without it the environment
            variable MLFLOW_TRACKING_URI, or else a database in OUTPUT_DIR/mlflow
        experiment: name of the experiment
        live: send events as they come, not behind the snapshot that has them
        artifacts: send texts and the files of final/ too
    """

    name = "mlflow"
    client = "mlflow"
    requirement = "mlflow>=3"

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment: str = "trainer",
        live: bool = False,
        artifacts: bool = True,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is of another type.
        """
        check_types(MLflowCallback, locals(), "mlflow_")
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.live = live
        self.artifacts = artifacts

    def make_tracker(self, trainer: TrainerProtocol, folder: Path) -> TrackerProcess:
        """Returns the tracker, not open yet."""
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        arguments = {
            "uri": uri or f"sqlite:///{folder / 'mlflow.db'}",
            "experiment": self.experiment,
            "artifacts": None if uri else (folder / "artifacts").as_uri(),
            "run_id": trainer.run_id,
            "run_name": trainer.run_name,
            "settings": dict(trainer.hyperparameters),
            "with_texts": self.artifacts,
        }
        # Telemetry would tell its makers what is called, and write to the home directory.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", **_QUICK, **os.environ}
        return TrackerProcess(
            "trainer_mlflow.tracker", arguments, log=folder / "client.log", environment=quiet
        )
