"""The objects of a run <-> one dictionary of plain data and tensors. Knows no file and no
callback.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_callback import SnapshotError
from trainer_callback.state import to_plain

from .keeper import check_model_state
from .loaders import EpochLoader
from .losses import LossMeter
from .precision import Precision
from .ranks import ALONE, Ranks
from .rng import read_rng, restore_rng
from .sharding import check_optimizer_state, gather_weights, scatter_optimizer_state, scatter_state

__all__ = ["Checkpoint"]

logger: logging.Logger = logging.getLogger("trainer")


class Checkpoint:
    """What has to be saved of the objects of a run, so that it goes on bit by bit as if nothing had
    happened.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        precision: Precision,
        losses: LossMeter,
        loader: EpochLoader,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Keeps references; nothing is copied here."""
        self._ranks = ranks
        self._model = model
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._precision = precision
        self._losses = losses
        self._loader = loader
        self._device = device
        self._rng: dict[str, Any] | None = None
        self._loader_state: dict[str, Any] | None = None
        self._in_place = True

    def read(self, *, mid_epoch: bool) -> dict[str, Any]:
        """Returns the state now; tensors are those of the run, for the caller to copy. What the
        other processes have of their own comes along, so all of them have to call this.

        Args:
            mid_epoch: the loader is inside an epoch, so its own position belongs to the state; the
                resumed one as long as the loader has not been put there.

        Raises:
            StateError: a state_dict holds what a snapshot cannot keep; it names the path to it.
        """
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        parts = {
            "model": gather_weights(self._model, keep=self._ranks.is_main),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": scheduler,
            "classes": self._classes(),
            "scaler": self._precision.state(),
            "losses": self._losses.state(),
            **self._own_parts(mid_epoch=mid_epoch),
        }
        check_optimizer_state(parts["optimizer"], self._optimizer)
        state = {name: to_plain(part, name, copy_tensors=False) for name, part in parts.items()}
        state["other_ranks"] = []
        if not self._ranks.is_alone:
            own = {name: state[name] for name in ("loader", "rng")}
            state["other_ranks"] = [_unpack(each) for each in self._ranks.gather(_pack(own))[1:]]
        return state

    def load(self, state: Mapping[str, Any], path: Path) -> None:
        """Puts every object into `state`.

        Raises:
            SnapshotError: it does not fit the model, the optimizer or the scheduler of this run.
        """
        others = state.get("other_ranks", [])
        if len(others) + 1 != self._ranks.world_size:
            raise SnapshotError(
                f"{path} was written by {len(others) + 1} processes, and this run has "
                f"{self._ranks.world_size}: each would see other data. Start as many."
            )
        built = [dict(group) for group in self._optimizer.param_groups]
        own = self._model.state_dict()
        check_model_state(own, state["model"], path)
        self._model.load_state_dict(scatter_state(state["model"], own))
        self._check_classes(state["classes"], path)
        try:
            whole = scatter_optimizer_state(state["optimizer"], self._optimizer)
            self._optimizer.load_state_dict(dict(whole))
            if self._scheduler is not None:
                self._scheduler.load_state_dict(state["scheduler"])
            self._precision.load_state(state["scaler"])
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotError(
                f"{path} does not fit the optimizer or scheduler of this run: {error}. Build them "
                "as the run that wrote it did."
            ) from error
        self._tell_unused(built)
        self._losses.load_state(state["losses"])
        mine = state if self._ranks.is_main else others[self._ranks.rank - 1]
        self._rng = mine["rng"]
        self._loader_state, self._in_place = mine["loader"], False

    def restore_rng(self) -> None:
        """Puts the generators where the snapshot had them; callbacks may have drawn numbers since.
        Nothing happens in a fresh run.
        """
        if self._rng is not None:
            restore_rng(self._rng, self._device)

    def continue_epoch(self, epoch: int, batch: int) -> Iterator[tuple[Any, bool]]:
        """Returns the batches of `epoch` from `batch` on, as `EpochLoader.iterate`; finding the
        place changes no generator.
        """
        self._in_place = True
        if batch == 0:
            return self._loader.iterate(epoch)
        rng = read_rng(self._device)
        return self._loader.iterate(
            epoch, batch, self._loader_state, lambda: restore_rng(rng, self._device)
        )

    def _own_parts(self, *, mid_epoch: bool) -> dict[str, Any]:
        """Returns what each process has of its own."""
        loader = None
        if mid_epoch:
            loader = self._loader.state() if self._in_place else self._loader_state
        return {"loader": loader, "rng": read_rng(self._device)}

    def _tell_unused(self, built: list[dict[str, Any]]) -> None:
        """Says which settings that the optimizer was built with have no effect: it goes on with
        those of the snapshot. The rate of a run with a schedule differs all the time.
        """
        for old, new in zip(built, self._optimizer.param_groups, strict=False):
            for name, value in old.items():
                if name == "params" or (name == "lr" and "initial_lr" in old):
                    continue
                if repr(new.get(name, value)) != repr(value):
                    text = "the optimizer goes on with %s %r of the snapshot; %r has no effect."
                    logger.warning(text, name, new[name], value)

    def _classes(self) -> dict[str, str]:
        return {
            "optimizer": type(self._optimizer).__name__,
            "scheduler": type(self._scheduler).__name__,
        }

    def _check_classes(self, saved: Mapping[str, str], path: Path) -> None:
        for part, name in self._classes().items():
            if saved[part] != name:
                raise SnapshotError(
                    f"{path} was written with the {part} {saved[part]}, and this run has {name}. "
                    "Build it as the run that wrote it did."
                )


def _pack(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=True)
