"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["EXIT_CODES", "Status", "Stop", "TrainResult"]

Status = Literal["finished", "stopped", "failed", "interrupted", "terminated"]

EXIT_CODES: Final[Mapping[Status, int]] = {
    "finished": 0,
    "stopped": 0,
    "failed": 1,
    "interrupted": 130,
    "terminated": 143,
}


@dataclass(frozen=True)
class Stop:
    """A decision to end the run.

    Attributes:
        status: what it makes of the run.
        reason: one word for programs: `epochs`, `max_steps`, `max_time`, a callback's own,
            `SIGTERM`, `SIGINT`.
        detail: one sentence for people, or empty.
        by: the plugin that asked, or None.
    """

    status: Status
    reason: str
    detail: str = ""
    by: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.train` returns and `on_train_end` is handed.

    Attributes:
        status: `finished` (epochs, steps or time used up), `stopped` (a callback asked), `failed`,
            `interrupted` (Ctrl-C) or `terminated`.
        stop_reason: one word for programs; see `Stop.reason`. The exception's class where one has
            ended the run.
        stop_detail: one sentence for people, or empty.
        stopped_by: name of the plugin that asked for the end, or None.
        epochs: epochs completed, over all resumes.
        steps: optimizer updates, over all resumes.
        train_loss: mean over the last epoch's batches, or None before the first epoch's end.
        val_loss: of the last validation, or None.
        history: one mapping of metrics per validation or epoch end, with `epoch` and `step`.
        callback_costs: plugin -> hook -> `calls` and `seconds` in this process; hooks of the batch
            are sampled and scaled up.
        switched_off: plugins that failed and were not critical.
    """

    status: Status
    stop_reason: str
    stop_detail: str
    stopped_by: str | None
    epochs: int
    steps: int
    train_loss: float | None
    val_loss: float | None
    history: list[dict[str, Any]] = field(default_factory=list)
    callback_costs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    switched_off: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What a command that ran this should exit with."""
        return EXIT_CODES[self.status]
