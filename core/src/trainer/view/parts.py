"""What the `trainer` of every hook is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from trainer_callback import TrainerProtocol
from trainer_callback.calls.manager import CallbackManager

from ..config import TrainerConfig
from ..counters import Position
from ..data.loaders import EpochLoader
from ..processes.loop_queue import LoopQueue
from ..processes.ranks import Ranks
from ..snapshots.store import SnapshotStore
from ..step.precision import Precision
from ..step.update import Updater
from ..writers.journal import Journal
from .senders import Senders

__all__ = ["Parts"]


class Parts:
    """The parts of a run that a callback's calls reach.

    Attributes:
        position: where the run stands.
        manager: the callbacks of the run, and what calls their hooks.
        senders: what does their work in the background.
        collect_hyperparameters: the view -> `hyperparameters`; see the protocol. It does not hold
            the view, which holds it.
        store: writes snapshots and weights.
        ranks: the processes of the run.
        queue: what other threads have sent.
        journal: what was logged.
        run_id: of the run that has started.
        updater: the optimizer at hand: in the hooks of its step the one that steps, else the first.
        snapshot_requested: a callback has asked for a snapshot that is not taken yet.
        validates: there is a validation.
        metric_names: those that the run will have; see the protocol.
        training: what the run goes through for training, or went through last; None: not known.
        has_epochs: its loop counts them.
        loss_of: batch -> what the loss function answers; None: the loop computes its own losses.
    """

    __slots__ = (  # and no others: nobody would read a `trainer.stop` that a callback sets
        *("_config", "_device", "_logs_within", "_model", "_precision", "_reported_buffers"),
        *("collect_hyperparameters", "journal", "manager", "position", "queue", "ranks", "run_id"),
        *("senders", "snapshot_requested"),
        *("has_epochs", "loss_of", "metric_names", "store", "training", "updater", "validates"),
        "__weakref__",
    )

    def __init__(
        self,
        model: nn.Module,
        updater: Updater,
        callbacks: CallbackManager,
        ranks: Ranks,
        precision: Precision,
        *,
        config: TrainerConfig,
        device: torch.device,
    ) -> None:
        self._model = model
        self._config = config
        self._device = device
        self._precision = precision
        self._logs_within = 0
        self._reported_buffers: set[str] = set()
        self.updater = updater
        self.manager = callbacks
        self.collect_hyperparameters: Callable[[Any], Mapping[str, object]] = lambda view: {}
        self.store: SnapshotStore = SnapshotStore(config)
        self.ranks = ranks
        self.position: Position = Position()
        self.queue: LoopQueue = LoopQueue()
        self.senders: Senders = Senders(callbacks, self.queue)
        self.journal: Journal = Journal(None)
        self.run_id: str = ""
        self.snapshot_requested: bool = False
        self.validates: bool = False
        self.metric_names: Sequence[str] | None = None
        self.training: EpochLoader | None = None
        self.has_epochs: bool = True
        self.loss_of: Callable[[Any], Any] | None = None

    @property
    def _as_trainer(self) -> TrainerProtocol:
        return cast(TrainerProtocol, self)  # the whole of it is a `View`
