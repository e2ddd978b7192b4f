"""The callback: its options, and where W&B keeps what it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trainer_callback import TrackerCallback, TrackerProcess, TrainerProtocol
from trainer_callback.values import check_types

__all__ = ["WandbCallback"]


class WandbCallback(TrackerCallback):
    """Sends what the run logs to Weights & Biases: settings, metrics, texts, the finished model.

    Offline, a file in OUTPUT_DIR/wandb has the whole run, for `wandb sync`; it is written anew
    where a run resumes. A run that was killed and resumed has each event once.

    Args:
        project: name of the project
        mode: offline for files, online for the server of W&B, for which you have to be logged in
        entity: team or user; without it your own
        artifacts: send the files of final/ too
    """

    name = "wandb"
    client = "wandb"
    requirement = "wandb>=0.31"

    def __init__(
        self,
        project: str = "trainer",
        *,
        mode: Literal["offline", "online"] = "offline",
        entity: str | None = None,
        artifacts: bool = True,
    ) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is of another type.
        """
        check_types(WandbCallback, locals(), "wandb_")
        self.project = project
        self.mode = mode
        self.entity = entity
        self.artifacts = artifacts

    def make_tracker(self, trainer: TrainerProtocol, folder: Path) -> TrackerProcess:
        """Returns the tracker, not open yet."""
        arguments = {
            "project": self.project,
            "entity": self.entity,
            "mode": self.mode,
            "folder": str(folder),
            "run_id": trainer.run_id,
            "run_name": trainer.run_name,
            "settings": dict(trainer.hyperparameters),
        }
        places = {f"WANDB_{name}_DIR": str(folder / ".wandb") for name in ("CACHE", "DATA")}
        return TrackerProcess(
            "trainer_wandb.tracker", arguments, log=folder / "client.log", environment=places
        )
