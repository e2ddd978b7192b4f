"""The objects of a run <-> one dictionary of plain data and tensors. Knows no file and no
callback.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from trainer_callback import SnapshotError, StateError
from trainer_callback.state import to_plain

from .config import ConfigError, TrainerConfig
from .facts import describe_data, tell_other_data
from .final import describe_unsaveable
from .loaders import EpochLoader
from .losses import LossMeter
from .model_state import check_model_state, load_model_state
from .parameters import match_parameters, name_frozen, name_parameters, tell_frozen
from .precision import Precision
from .progress import Progress
from .ranks import ALONE, Ranks
from .rng import read_rng, restore_rng
from .schedules import (
    compare_functions,
    describe_schedule,
    fixed_settings,
    list_ends,
    list_unused,
    name_schedule,
)
from .sharding import check_optimizer_state, gather_weights, scatter_optimizer_state
from .unkept import Unkept

__all__ = ["Checkpoint", "UnsaveableError"]

logger: logging.Logger = logging.getLogger("trainer")

_SET_LATER: Final = "To change it, set it in a callback's on_train_start."


class UnsaveableError(ConfigError, StateError):
    """Model, optimizer or scheduler hold what a snapshot cannot keep, or could not give back."""


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
        self._unkept = Unkept(model, optimizer, loader.given)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forgets the snapshot that was loaded; looks what is frozen before any callback."""
        self._frozen = name_frozen(self._model)
        self._unkept.start()
        self._rng: dict[str, Any] | None = None
        self._loader_state: dict[str, Any] | None = None
        self._in_place = True
        self._other_schedule = False

    def check_saveable(self) -> str | None:
        """Looks, before the first step, for what `read` could not save, or `load` not put back.

        Returns:
            What keeps `final/model.safetensors` from being written, or None.

        Raises:
            UnsaveableError: names the part, and the place in it.
        """
        state = self._optimizer.state_dict()
        if not (isinstance(state, Mapping) and {"state", "param_groups"} <= state.keys()):
            raise UnsaveableError(
                f"{type(self._optimizer).__name__}.state_dict() answers no 'state' and "
                "'param_groups', from which a run could go on. Let it answer what "
                "torch.optim.Optimizer does, or train without output_dir."
            )
        model = self._model.state_dict()
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        for name, part in (("model", model), ("optimizer", state), ("scheduler", scheduler)):
            try:
                to_plain(part, name, copy_tensors=False)
            except StateError as error:
                raise UnsaveableError(str(error)) from error
        for name, value in model.items():
            if isinstance(value, torch.Tensor) and _is_expanded(value):
                raise UnsaveableError(
                    f"model.{name} is expanded: several of its elements are one place in memory, "
                    "and nothing can be loaded into it. Make it with .expand(...).clone()."
                )
        return describe_unsaveable(model)

    def read(self, *, mid_epoch: bool) -> dict[str, Any]:
        """Returns the state now; tensors are those of the run, for the caller to copy. What the
        other processes have of their own comes along, so all of them have to call this.

        Args:
            mid_epoch: the loader is inside an epoch, so its own position belongs to the state; the
                resumed one as long as the loader has not been put there.

        Raises:
            StateError: a state_dict holds what a snapshot cannot keep; it names the path to it.
        """
        self._unkept.tell()
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        parts = {
            "model": gather_weights(self._model, keep=self._ranks.is_main),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": scheduler,
            "classes": self._classes(),
            "parameters": name_parameters(self._model, self._optimizer),
            "frozen": self._frozen,
            "data": describe_data(self._loader.given),
            "scaler": self._precision.state(),
            "losses": self._losses.state(),
            **self._own_parts(mid_epoch=mid_epoch),
        }
        check_optimizer_state(parts["optimizer"], self._optimizer)
        state = {name: to_plain(part, name, copy_tensors=False) for name, part in parts.items()}
        state["other_ranks"] = []
        if not self._ranks.is_alone:
            own = {name: state[name] for name in ("loader", "rng")}
            state["other_ranks"] = [
                _unpack(each) for each in self._ranks.gather(_pack(own), "state")[1:]
            ]
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
        self._check_place(state["progress"], path)
        built = [dict(group) for group in self._optimizer.param_groups]
        own = self._model.state_dict()
        _check_names(own, state["model"], path)
        check_model_state(self._model, own, state["model"], path)
        load_model_state(self._model, own, state["model"], path)
        self._check_classes(state["classes"], path)
        ordered = match_parameters(
            state["optimizer"], state.get("parameters"), self._model, self._optimizer, path
        )
        try:
            whole = scatter_optimizer_state(ordered, self._optimizer)
            self._optimizer.load_state_dict(dict(whole))
            self._load_schedule(state["scheduler"])
            self._precision.load_state(state["scaler"])
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotError(
                f"{path} does not fit the optimizer or scheduler of this run: {error}. Build them "
                "as the run that wrote it did."
            ) from error
        self._tell_unused(built)
        tell_frozen(state.get("frozen", self._frozen), self._frozen)
        if "data" in state:
            now = describe_data(self._loader.given)
            tell_other_data(state["data"], now, state["progress"])
        self._losses.load_state(state["losses"])
        mine = state if self._ranks.is_main else others[self._ranks.rank - 1]
        self._rng = mine["rng"]
        self._loader_state, self._in_place = mine["loader"], False

    def check_schedule(self, progress: Progress, config: TrainerConfig) -> None:
        """Tells, before the first step, of a schedule that ends before the run.

        Raises:
            ConfigError: it cannot be stepped to the end.
        """
        left = _updates_left(progress, config, self._loader.length)
        for text in list_ends(self._scheduler, left, changed=self._other_schedule):
            logger.warning("%s", text)

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
        self._unkept.start_epoch()
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

    def _check_place(self, progress: Mapping[str, Any], path: Path) -> None:
        """Refuses a place inside an epoch that the epoch does not have."""
        length, batch = self._loader.length, progress["batch_in_epoch"]
        if length is not None and batch > length and not progress["epoch_done"]:
            raise SnapshotError(
                f"{path} stands behind batch {batch} of epoch {progress['epoch']}, and an epoch of "
                f"the training loader has {length} batches. Give it the data and the batch size of "
                "the run that wrote it, or name a snapshot of an epoch's end."
            )

    def _load_schedule(self, state: Any) -> None:
        """Puts the scheduler into `state`, and says which of its own settings have no effect."""
        if self._scheduler is None:
            return
        built = describe_schedule(self._scheduler)
        self._scheduler.load_state_dict(state)
        unused = [*list_unused(built, describe_schedule(self._scheduler))]
        self._other_schedule = bool(unused)
        for text in unused:
            logger.warning("%s %s", text, _SET_LATER)
        compared = compare_functions(self._scheduler)
        if compared is not None:
            text, differ = compared
            logger.log(logging.WARNING if differ else logging.INFO, "%s", text)

    def _tell_unused(self, built: list[dict[str, Any]]) -> None:
        """Says which settings that the optimizer was built with have no effect: it goes on with
        those of the snapshot.
        """
        for index, (old, new) in enumerate(zip(built, self._optimizer.param_groups, strict=False)):
            of_group = f" (group {index})" if len(built) > 1 else ""
            before, after = (fixed_settings(group, self._scheduler) for group in (old, new))
            for name, value in before.items():
                if repr(after.get(name, value)) != repr(value):
                    logger.warning(
                        "the optimizer%s goes on with %s %r of the snapshot; %r has no effect. %s",
                        *(of_group, name, after[name], value, _SET_LATER),
                    )

    def _classes(self) -> dict[str, str]:
        return {
            "optimizer": type(self._optimizer).__name__,
            "scheduler": name_schedule(self._scheduler),
        }

    def _check_classes(self, saved: Mapping[str, str], path: Path) -> None:
        none = type(None).__name__
        for part, name in self._classes().items():
            if saved[part] in (name, name.partition("(")[0]):
                continue
            before = (
                f"with the {part} {saved[part]}" if saved[part] != none else f"without a {part}"
            )
            raise SnapshotError(
                f"{path} was written {before}, and this run has "
                f"{name if name != none else 'none'}. Build it as the run that wrote it did."
            )


def _check_names(own: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    first = next(iter(saved), "")
    if first.startswith("_orig_mod.") and first not in own:
        raise SnapshotError(
            f"{path} has {first!r}: it was written with the names of a compiled model, before they "
            "became those of the plain model. Start a run of its own from its weights."
        )


def _updates_left(progress: Progress, config: TrainerConfig, batches: int | None) -> int | None:
    """Returns how many updates this run will make, or None where nobody knows.

    Args:
        batches: of an epoch.
    """
    by_steps = None if config.max_steps is None else max(0, config.max_steps - progress.step)
    if batches is None:
        return by_steps
    window = config.gradient_accumulation_steps
    left = max(0, config.epochs - progress.epochs_done) * math.ceil(batches / window)
    if progress.is_mid_epoch:
        left -= math.ceil(min(batches, progress.batch_in_epoch) / window)
    return left if by_steps is None else min(left, by_steps)


def _is_expanded(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)


def _pack(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=True)
