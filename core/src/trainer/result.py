"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["EXIT_CODES", "ModelWeights", "Status", "Stop", "TrainResult"]

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
class ModelWeights:
    """Whose weights the model has at the end of a run.

    Attributes:
        kind: `last`: those of the last update. `restored`: those of an earlier one, which a
            callback has put back. `changed`: a callback has put others in, such as an average.
        epoch: of the update that they are of; of changed ones, where the run has ended.
        step: the number of that update.
        metrics: found with them, in the validation or at the end of the epoch behind that update;
            empty where there was none, and for changed ones that were not validated.
        detail: what the callback says of them, or empty.
    """

    kind: Literal["last", "restored", "changed"]
    epoch: int
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""

    def __str__(self) -> str:
        """One line for people."""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.kind} weights, epoch {self.epoch}, update {self.step}{detail}"


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
        uncalled_hooks: plugin -> hook -> why it was not called in this process.
        switched_off: plugins that failed and were not critical.
        weights: whose weights the model has; in `on_train_end`, before callbacks change them there.
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
    uncalled_hooks: dict[str, dict[str, str]] = field(default_factory=dict)
    switched_off: tuple[str, ...] = ()
    weights: ModelWeights = field(default_factory=lambda: ModelWeights("last", 0, 0))

    @property
    def exit_code(self) -> int:
        """What a command that ran this should exit with."""
        return EXIT_CODES[self.status]
