"""What a callback sees of a run: `trainer_callback.TrainerProtocol`, built from plain parts. It
drives nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from trainer_callback import GradientStats, SnapshotError
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.checks import is_count
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
    """The `trainer` of every hook; `TrainerProtocol` says what its members are. `model` is never a
    compiled wrapper, and a `ModuleDict` of several; `config` has the precision and the directory
    that were chosen.

    Attributes:
        position: where the run stands.
        callbacks: those of the run, and what calls their hooks.
        store: writes snapshots and weights.
        ranks: the processes of the run.
        queue: what other threads have sent.
        updater: the optimizer at hand: in the hooks of its step the one that steps, else the first.
        snapshot_requested: a callback has asked for a snapshot that is not taken yet.
        validates: there is a validation.
        metric_names: those that the run will have; see the protocol.
        count_updates: returns the updates of the whole run, if nothing ends it early; None where
            nobody knows.
    """

    __slots__ = (  # and no others: nobody would read a `trainer.stop` that a callback sets
        *("_config", "_device", "_logs_within", "_model", "_precision", "_reported_buffers"),
        *("callbacks", "position", "queue", "ranks", "snapshot_requested"),
        *("count_updates", "metric_names", "store", "updater", "validates", "__weakref__"),
    )

    def __init__(
        self,
        model: nn.Module,
        updater: Updater,
        *,
        config: TrainerConfig,
        device: torch.device,
        callbacks: CallbackManager,
        ranks: Ranks,
        precision: Precision,
    ) -> None:
        self._model = model
        self._config = config
        self._device = device
        self._precision = precision
        self._logs_within = 0
        self._reported_buffers: set[str] = set()
        self.updater = updater
        self.callbacks = callbacks
        self.store: SnapshotStore = SnapshotStore(config)
        self.ranks = ranks
        self.position: Position = Position()
        self.queue: LoopQueue = LoopQueue()
        self.snapshot_requested: bool = False
        self.validates: bool = False
        self.metric_names: Sequence[str] | None = None
        self.count_updates: Callable[[], int | None] = lambda: None

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.updater.optimizer

    @property
    def scheduler(self) -> Any:
        return self.updater.scheduler

    @property
    def config(self) -> TrainerConfig:
        return self._config

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def output_dir(self) -> Path | None:
        return self._config.output_dir

    @property
    def has_validation(self) -> bool:
        return self.validates

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        return self.ranks.world_size

    @property
    def is_main_process(self) -> bool:
        return self.ranks.is_main

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def step(self) -> int:
        return self.position.step

    @property
    def batch_in_epoch(self) -> int:
        return self.position.batch

    @property
    def last_update_of_epoch(self) -> bool:
        return self.position.is_last

    @property
    def metrics(self) -> Mapping[str, float]:
        return MappingProxyType(self.position.metrics)

    @property
    def loss_scale(self) -> float | None:
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
        values = to_floats(metrics)
        if not self.queue.is_elsewhere:
            self.position.metrics.update(values)
        self.queue.send(partial(self._send_metrics, values))

    def _send_metrics(self, values: Mapping[str, float]) -> None:
        with self._within("log", "metrics"):
            self.position.metrics.update(values)
            self.callbacks.hook.on_log(trainer=self, metrics=values, step=self.step)

    def log_text(self, name: str, text: str) -> None:
        for argument, value in (("name", name), ("text", text)):
            if not isinstance(value, str):
                raise TypeError(
                    f"log_text: {argument} must be a str, got {show(value)}. Use str(...), or "
                    "trainer.log for numbers."
                )
        self.queue.send(partial(self._send_text, name, text))

    def _send_text(self, name: str, text: str) -> None:
        with self._within("log_text", "name"):
            hook = self.callbacks.hook.on_log_text
            hook(trainer=self, name=name, text=text, step=self.step)

    @contextlib.contextmanager
    def _within(self, call: str, what: str) -> Iterator[None]:
        """Refuses a hook that logs, and is called by that, without an end."""
        if self._logs_within >= _MOST_WITHIN:
            raise RuntimeError(
                f"trainer.{call} was called inside on_{call} {_MOST_WITHIN} times in one another, "
                f"each sending the next. Log it in another hook, or only where it is not in "
                f"`{what}`."
            )
        self._logs_within += 1
        try:
            yield
        finally:
            self._logs_within -= 1

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        self.queue.check_thread()
        own = to_floats(values, "trainer.total", taken=())
        self.ranks.meet("trainer.total", by_callback=True)
        everywhere = self.ranks.gather(own, "trainer.total")
        if any(each.keys() != own.keys() for each in everywhere):
            names = " and ".join(", ".join(each) or "none" for each in everywhere)
            raise ValueError(
                f"trainer.total: the processes have other names: {names}. Give the same in all of "
                "them, with 0 where one has nothing."
            )
        return {name: sum(each[name] for each in everywhere) for name in own}

    def gradient_stats(
        self, groups: Mapping[str, Sequence[str]] | None = None, *, norm_type: float = 2.0
    ) -> GradientStats:
        return self.updater.gradients.stats(groups, norm_type)

    def request_snapshot(self) -> None:
        self.queue.send(self._request_snapshot)

    def _request_snapshot(self) -> None:
        self.snapshot_requested = True

    def check_replicas(self) -> None:
        """Raises a `ReplicaError`, in all processes, where they have come to train other models."""
        check_replicas(self._model, self.ranks, self.callbacks, self.step, self._reported_buffers)

    def save_weights(self, name: str) -> str:
        self.queue.check_process()
        facts = {"step": self.step, "epoch": self.epoch}
        point = f"save_weights {name!r}"
        self.ranks.meet(point, by_callback=True)
        weights = gather_weights(self._model, keep=self.is_main_process)
        return self.ranks.on_main(
            lambda: self.store.save_weights(name, weights, facts), point, by_callback=True
        )

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        own, weights = self._model.state_dict(), {}

        def read() -> tuple[str, tuple[int, int]]:
            source, state, place = self.store.read_weights(
                *(name, digest, fallback_step, self._model, own)
            )
            weights.update(state)
            return source, place

        point = f"load_weights {name!r}"
        source, (epoch, step) = self.ranks.on_main(read, point, by_callback=True)
        fault = None
        try:
            load_model_state(self._model, own, weights, source)
        except SnapshotError as error:  # the main process alone has what may not fit
            fault = str(error)
        fault = next(filter(None, self.ranks.gather(fault, point)), None)
        if fault is not None:
            raise SnapshotError(fault)
        self.ranks.share(whole_tensors(self._model))
        self.note_weights(f"from {source}", epoch=epoch, step=step)
        return source

    def note_weights(
        self, detail: str, *, step: int | None = None, epoch: int | None = None
    ) -> None:
        if not isinstance(detail, str):
            raise TypeError(
                f"note_weights: detail must be a str, got {show(detail)}. Say whose weights the "
                'model has now: trainer.note_weights("the average over 60 updates").'
            )
        known = all(each is None or is_count(each, 0) for each in (step, epoch))
        if not known or (step is None and epoch is not None):
            raise ValueError(
                "note_weights: step and epoch are integers of at least 0 or None, got "
                f"{show(step)} and {show(epoch)}. Give those of the update that the weights are of."
            )
        noted = {"detail": detail, "epoch": epoch, "step": step, "at": self.step}
        self.position.weights = noted

    def delete_weights(self, name: str) -> None:
        if self.is_main_process:
            self.store.delete_weights(name)
