"""What a callback sees of a run: `trainer_callback.TrainerProtocol`, built from plain parts. It
drives nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from trainer_callback import CallbackInfo, GradientStats

from ..config import TrainerConfig
from ..processes.replicas import check_replicas
from ..snapshots.facts import describe_callback
from ..writers.metrics_file import to_floats
from .data import Data
from .logs import Logs
from .weights import Weights

__all__ = ["View"]


class View(Logs, Data, Weights):
    """The `trainer` of every hook; `TrainerProtocol` says what its members are. `model` is never a
    compiled wrapper, and a `ModuleDict` of several; `config` has the precision and the directory
    that were chosen. It has the attributes of `Parts`, and no others.
    """

    __slots__ = ()

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
    def run_name(self) -> str:
        place = self._config.output_dir
        return self._config.run_name or (place.name if place else "") or self.run_id

    @property
    def callbacks(self) -> Mapping[str, CallbackInfo]:
        found = {}
        for each in self.manager.plugins:
            options = MappingProxyType(describe_callback(each)["options"])
            identity = (each.name, each.callback, each.distribution, each.version)
            found[each.name] = CallbackInfo(*identity, options)
        return MappingProxyType(found)

    @property
    def hyperparameters(self) -> Mapping[str, object]:
        return MappingProxyType({**self.collect_hyperparameters(self)})

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
    def gradient_accumulation_steps(self) -> int:
        return self._config.gradient_accumulation_steps

    @property
    def max_grad_norm(self) -> float | None:
        return self._config.max_grad_norm

    @property
    def precision(self) -> str:
        return self._config.precision

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

    @property
    def hook(self) -> Any:
        self.queue.check_thread()
        return self.manager.extensions

    def hold_snapshot(self, path: str | Path) -> AbstractContextManager[Path]:
        self.queue.check_process()
        if not self.ranks.is_main:
            raise RuntimeError(
                "hold_snapshot: the main process alone keeps and removes snapshots, and this is "
                f"process {self.ranks.rank}. Ask for trainer.is_main_process first."
            )
        return self.store.hold(Path(path))

    def submit(self, callback: object, function: Callable[..., object], *arguments: Any) -> bool:
        return self.senders.submit(callback, function, arguments)

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
        check_replicas(self._model, self.ranks, self.manager, self.step, self._reported_buffers)
