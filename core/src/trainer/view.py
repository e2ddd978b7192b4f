"""What a callback sees of a run: `trainer_callback.TrainerProtocol`, built from plain parts. It
drives nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from trainer_callback import GradientStats, SnapshotError
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.errors import show

from .config import TrainerConfig
from .counters import Position
from .processes.loop_queue import LoopQueue
from .processes.ranks import Ranks
from .processes.replicas import check_replicas
from .processes.sharding import gather_weights, whole_tensors
from .snapshots.model_state import load_model_state
from .snapshots.store import SnapshotStore
from .step.precision import Precision
from .step.update import Updater
from .writers.metrics_file import to_floats

__all__ = ["View"]

_MOST_WITHIN: Final = 20


class View:
    """The `trainer` of every hook.

    Attributes:
        position: where the run stands.
        callbacks: who hears of what is logged.
        store: writes snapshots and weights.
        ranks: the processes of the run.
        queue: what other threads have sent.
        updater: the optimizer at hand: in the hooks of its step the one that steps, else the first.
        snapshot_requested: a callback has asked for a snapshot that is not taken yet.
        validates: there is a validation.
    """

    __slots__ = (  # and no others: nobody would read a `trainer.stop` that a callback sets
        *("_config", "_device", "_logs_within", "_model", "_precision", "_told_buffers"),
        *("callbacks", "position", "queue", "ranks", "snapshot_requested"),
        *("store", "updater", "validates", "__weakref__"),
    )

    def __init__(
        self,
        model: nn.Module,
        updater: Updater,
        *,
        config: TrainerConfig,
        device: torch.device,
        callbacks: CallbackManager,
        store: SnapshotStore,
        ranks: Ranks,
        precision: Precision,
    ) -> None:
        """Keeps references."""
        self._model = model
        self._config = config
        self._device = device
        self._precision = precision
        self._logs_within = 0
        self._told_buffers: set[str] = set()
        self.updater = updater
        self.callbacks = callbacks
        self.store = store
        self.ranks = ranks
        self.position: Position = Position()
        self.queue: LoopQueue = LoopQueue()
        self.snapshot_requested: bool = False
        self.validates: bool = False

    @property
    def model(self) -> nn.Module:
        """The module that is trained, never a compiled wrapper; a `ModuleDict` of several."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer at hand."""
        return self.updater.optimizer

    @property
    def scheduler(self) -> Any:
        """The learning-rate scheduler of the optimizer at hand, or None."""
        return self.updater.scheduler

    @property
    def config(self) -> TrainerConfig:
        """The frozen settings of the run, with the precision and the directory that were chosen."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Where model and batches are."""
        return self._device

    @property
    def output_dir(self) -> Path | None:
        """Where the run writes; None for a run that writes nothing."""
        return self._config.output_dir

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation."""
        return self.validates

    @property
    def rank(self) -> int:
        """Number of this process, 0-based."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.ranks.world_size

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes."""
        return self.ranks.is_main

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.position.epoch

    @property
    def step(self) -> int:
        """Optimizer updates done so far, over all epochs and resumes."""
        return self.position.step

    @property
    def batch_in_epoch(self) -> int:
        """Micro-batches of this epoch that are done."""
        return self.position.batch

    @property
    def last_update_of_epoch(self) -> bool:
        """Whether the micro-batch at hand ends the epoch."""
        return self.position.is_last

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last known value of every metric; read-only."""
        return MappingProxyType(self.position.metrics)

    @property
    def loss_scale(self) -> float | None:
        """See `TrainerProtocol`."""
        return self._precision.loss_scale

    @property
    def snapshot_due(self) -> bool:
        """Known before backward: a snapshot will follow the update now under way, or just done. The
        same in all processes: where there are several, they hear of a request at the boundary.
        """
        config, position = self._config, self.position
        if config.output_dir is None:
            return False
        every, update, is_last = config.snapshot_interval, position.update, position.is_last
        return (
            (self.snapshot_requested and self.ranks.is_alone)
            or (every is not None and update % every == 0)
            or (config.snapshot_epochs and is_last)
            or update == config.max_steps
            or (is_last and position.epoch + 1 == config.epochs)
        )

    def log(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to `on_log` of every callback, at the next boundary where another thread
        calls; see `TrainerProtocol`.
        """
        values = to_floats(metrics)
        if not self.queue.is_elsewhere:
            self.position.metrics.update(values)
        self.queue.send(partial(self._send_metrics, values))

    def _send_metrics(self, values: Mapping[str, float]) -> None:
        self._check_within("log")
        self.position.metrics.update(values)
        self._logs_within += 1
        try:
            self.callbacks.hook.on_log(trainer=self, metrics=values, step=self.step)
        finally:
            self._logs_within -= 1

    def log_text(self, name: str, text: str) -> None:
        """Sends a text to `on_log_text` of every callback; see `TrainerProtocol`."""
        for argument, value in (("name", name), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(
                    f"log_text: {argument} must be a str, got {show(value)}. Use str(...), or "
                    "trainer.log for numbers."
                )
        self.queue.send(partial(self._send_text, name, text))

    def _send_text(self, name: str, text: str) -> None:
        self._check_within("log_text")
        self._logs_within += 1
        try:
            hook = self.callbacks.hook.on_log_text
            hook(trainer=self, name=name, text=text, step=self.step)
        finally:
            self._logs_within -= 1

    def _check_within(self, call: str) -> None:
        if self._logs_within >= _MOST_WITHIN:
            what = "metrics" if call == "log" else "name"
            raise RuntimeError(
                f"trainer.{call} was called inside on_{call} {_MOST_WITHIN} times in one another, "
                f"each sending the next. Log it in another hook, or only where it is not in "
                f"`{what}`."
            )

    def gradient_stats(
        self, groups: Mapping[str, Sequence[str]] | None = None, *, norm_type: float = 2.0
    ) -> GradientStats:
        """Statistics of the gradients as they are now; see `TrainerProtocol`."""
        return self.updater.gradients.stats(groups, norm_type)

    def request_snapshot(self) -> None:
        """Asks for a snapshot at the next boundary."""
        self.queue.send(self._request_snapshot)

    def _request_snapshot(self) -> None:
        self.snapshot_requested = True

    def check_replicas(self) -> None:
        """Raises a `ReplicaError`, in all processes, where they have come to train other models."""
        check_replicas(self._model, self.ranks, self.callbacks, self.step, self._told_buffers)

    def save_weights(self, name: str) -> str:
        """See `TrainerProtocol`."""
        self.queue.check_process()
        facts = {"step": self.step, "epoch": self.epoch}
        point = f"save_weights {name!r}"
        self.ranks.meet(point, by_callback=True)
        weights = gather_weights(self._model, keep=self.is_main_process)
        return self.ranks.on_main(
            lambda: self.store.save_weights(name, weights, facts), point, by_callback=True
        )

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        """See `TrainerProtocol`."""
        own, weights = self._model.state_dict(), {}

        def read() -> str:
            source, state = self.store.read_weights(name, digest, fallback_step, self._model, own)
            weights.update(state)
            return source

        point = f"load_weights {name!r}"
        source = self.ranks.on_main(read, point, by_callback=True)
        fault = None
        try:
            load_model_state(self._model, own, weights, source)
        except SnapshotError as error:  # the main process alone has what may not fit
            fault = str(error)
        fault = next(filter(None, self.ranks.gather(fault, point)), None)
        if fault is not None:
            raise SnapshotError(fault)
        self.ranks.share(whole_tensors(self._model))
        return source

    def delete_weights(self, name: str) -> None:
        """See `TrainerProtocol`."""
        if self.is_main_process:
            self.store.delete_weights(name)
