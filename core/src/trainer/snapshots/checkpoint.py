"""The objects of a run <-> one dictionary of plain data and tensors. Knows no file and no
callback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_callback import SnapshotError, StateError
from trainer_callback.state import to_plain

from ..config import ConfigError, TrainerConfig
from ..counters import Position
from ..data.loaders import EpochLoader
from ..processes.ranks import ALONE, Ranks
from ..processes.rng import read_rng, restore_rng
from ..step.loss_meter import LossMeter
from ..step.losses import NonFiniteError
from ..step.parts import check_optimizer_devices, describe_bad_rate
from ..step.precision import Precision
from ..step.schedule_ends import count_steps, list_ends
from ..step.update import Updater
from .facts import describe_data, log_other_data
from .final import describe_unsaveable
from .frozen import Frozen, fill_in
from .kept import check_kept, load_kept, read_kept
from .model_state import check_model_state, is_expanded, load_model_state
from .optimizer_state import change_rate, load_updater, read_updaters
from .packing import pack, unpack
from .unkept import UnsavedChanges

__all__ = ["Checkpoint", "UnsaveableError"]

logger: logging.Logger = logging.getLogger("trainer")


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
        updaters: Sequence[Updater],
        precision: Precision,
        losses: LossMeter,
        device: torch.device,
        config: TrainerConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._model = model
        self._updaters = {each.name: each for each in updaters}
        self._precision = precision
        self._losses = losses
        self._loader: EpochLoader | None = None
        self._unkept = UnsavedChanges(model, [each.optimizer for each in updaters])
        self._device = device
        self._config = config
        self._kept: dict[str, Any] = {}
        self._frozen = Frozen(model, config, ranks)
        self.reset()

    def reset(self) -> None:
        """Forgets the snapshot that was loaded; looks what is frozen before any callback."""
        self._frozen.look()
        self._rng: dict[str, Any] | None = None
        self._epoch_rng: dict[str, Any] | None = None
        self._loader_state: dict[str, Any] | None = None
        self._resumed_data: tuple[Any, Mapping[str, Any], Path] | None = None
        self._in_place = False
        self._other_schedule = False
        self._unchecked: Position | None = None
        self._resumed_rate: float | None = None

    def begin(self, *, repeats: bool) -> None:
        """Remembers what a snapshot has to fit, when callbacks have set the run up.

        Args:
            repeats: callbacks do again, at a resume, what they change later.
        """
        self._frozen.start()
        self._unkept.start(repeats=repeats)

    @property
    def changed(self) -> str | None:
        """What is new in model or optimizer since the run began, for people; None: nothing."""
        return self._unkept.changed

    def keep(self, name: str, thing: Any) -> None:
        """Adds a thing with `state_dict` and `load_state_dict` to what each process saves.

        Raises:
            ConfigError: it has no such methods, or the name is taken.
        """
        check_kept(name, thing, self._kept)
        self._kept[name] = thing

    def use(self, loader: EpochLoader) -> None:
        """Takes batches from `loader` from here on. The first one of a resumed run is compared with
        that of the snapshot.

        Raises:
            SnapshotError: the snapshot stands behind its end.
        """
        if loader is self._loader:
            return
        self._loader = loader
        self._unkept.use(loader.given, self._kept.values())
        if self._resumed_data is not None:
            self._compare_data(loader)
        if self._unchecked is not None:
            self.check_schedule(self._unchecked)

    def _compare_data(self, loader: EpochLoader) -> None:
        assert self._resumed_data is not None
        saved, progress, path = self._resumed_data
        self._resumed_data = None
        self._check_batch_position(loader, progress, path)
        if saved is not None:
            log_other_data(saved, _describe_pass(loader), progress)

    def check_saveable(self) -> str | None:
        """Looks, before the first step, for what `read` could not save, or `load` not put back.

        Returns:
            What keeps `final/model.safetensors` from being written, or None.

        Raises:
            UnsaveableError: names the part, and the place in it.
        """
        for updater in self._updaters.values():
            state = updater.optimizer.state_dict()
            if not (isinstance(state, Mapping) and {"state", "param_groups"} <= state.keys()):
                raise UnsaveableError(
                    f"{type(updater.optimizer).__name__}.state_dict() answers no 'state' and "
                    "'param_groups', from which a run could go on. Let it answer what "
                    "torch.optim.Optimizer does, or train without output_dir."
                )
        model = self._model.state_dict()
        parts = {"model": model, **read_updaters(self._updaters, self._model)}
        try:
            kept = {f"keep({name!r})": each for name, each in read_kept(self._kept).items()}
            for name, part in {**parts, **kept}.items():
                to_plain(part, name, copy_tensors=False)
        except StateError as error:
            raise UnsaveableError(str(error)) from error
        for name, value in model.items():
            if isinstance(value, torch.Tensor) and is_expanded(value):
                raise UnsaveableError(
                    f"model.{name} is expanded: several of its elements are one place in memory, "
                    "and nothing can be loaded into it. Make it with .expand(...).clone()."
                )
        return describe_unsaveable(model)

    def optimizer_state(self) -> Any:
        """Returns the state of the only optimizer, or of each by its name."""
        return read_updaters(self._updaters, self._model)["optimizer"]

    def read(self, position: Position) -> dict[str, Any]:
        """Returns the state at `position`; tensors are those of the run, for the caller to copy.
        What the other processes have of their own comes along, so all of them have to call this.

        Raises:
            StateError: a state_dict holds what a snapshot cannot keep; it names the path to it.
        """
        self._unkept.warn()
        own = self._own_parts(position)
        weights, left_out = self._frozen.gather()
        parts = {
            "model": weights,
            "left_out": left_out,
            **read_updaters(self._updaters, self._model),
            "frozen": self._frozen.names,
            "resume_learning_rate": self._resumed_rate,
            "data": None if self._loader is None else _describe_pass(self._loader),
            "scaler": self._precision.state(),
            "losses": self._losses.state(),
            **own,
        }
        state = {name: to_plain(part, name, copy_tensors=False) for name, part in parts.items()}
        state["other_ranks"] = []
        if not self._ranks.is_alone:
            mine = {name: state[name] for name in own}
            state["other_ranks"] = [
                unpack(each) for each in self._ranks.gather(pack(mine), "state")[1:]
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
        if self._loader is not None:
            self._check_batch_position(self._loader, state["progress"], path)
        own = self._model.state_dict()
        weights = fill_in(state["model"], state.get("left_out", {}), own, path)
        _check_names(own, weights, path)
        check_model_state(self._model, own, weights, path)
        load_model_state(self._model, own, weights, path)
        for name in self._updaters:
            rate = self._config.resume_learning_rate
            is_other = load_updater(self._updaters, name, self._model, state, path, new_rate=rate)
            self._other_schedule = self._other_schedule or is_other
        self._precision.load_state(state["scaler"])
        self._frozen.tell(state)
        self._losses.load_state(state["losses"])
        mine = state if self._ranks.is_main else others[self._ranks.rank - 1]
        self._rng, self._epoch_rng = mine["rng"], mine.get("epoch_rng")
        self._loader_state, self._in_place = mine["loader"], False
        load_kept(self._kept, mine.get("kept", {}), path)
        self._resumed_data = (state.get("data"), state["progress"], path)
        if self._loader is not None:
            self._compare_data(self._loader)

    def change_rate(self, state: Mapping[str, Any]) -> None:
        """Changes the learning rate that was loaded from `state` as `resume_learning_rate` says."""
        earlier, rate = state.get("resume_learning_rate"), self._config.resume_learning_rate
        self._resumed_rate = change_rate(self._updaters, rate, earlier)

    def check_schedule(self, position: Position) -> None:
        """Warns, before the first step, of a schedule that ends before the run. A run that knows no
        loader yet looks again where it has one.

        Raises:
            ConfigError: it cannot be stepped to the end.
        """
        loader = self._loader
        left = count_steps(position, self._config, None if loader is None else loader.length)
        self._unchecked = position if loader is None and left is None else None
        for updater in self._updaters.values():
            ends = list_ends(updater.scheduler, left, self._config, changed=self._other_schedule)
            for text in ends:
                logger.warning("%s", text)

    def check_optimizer_devices(self) -> None:
        """Looks at the settings of the optimizers, which may be those of a snapshot.

        Raises:
            ConfigError: one cannot work where the parameters are.
        """
        for updater in self._updaters.values():
            check_optimizer_devices(updater.optimizer)

    def check_rates(self, step: int) -> None:
        """Looks, behind update `step`, at the learning rates.

        Raises:
            NonFiniteError: one is no number that an update can use.
        """
        for updater in self._updaters.values():
            fault = describe_bad_rate(updater.optimizer)
            if fault is not None:
                raise NonFiniteError(f"{fault}. That was found behind update {step}.")

    def restore_rng(self) -> None:
        """Puts the generators where the snapshot had them; callbacks may have drawn numbers since.
        Nothing happens in a fresh run.
        """
        if self._rng is not None:
            restore_rng(self._rng, self._device)

    def start_epoch(self, *, resumed: bool) -> None:
        """Remembers where the generators stand when an epoch begins; puts them there where the
        epoch began before a resume, so that what the loop draws before its first batch comes again.
        """
        if self._in_place and self._config.output_dir is not None:
            self._loader_state = self._read_place(in_pass=False)
        if resumed and self._epoch_rng is not None:
            restore_rng(self._epoch_rng, self._device)
        else:
            self._epoch_rng = read_rng(self._device)

    def continue_epoch(self, epoch: int, batch: int) -> Iterator[tuple[Any, bool]]:
        """Returns the batches of `epoch` from `batch` on, as `EpochLoader.iterate`; finding the
        place changes no generator.
        """
        assert self._loader is not None
        state, self._in_place = None if self._in_place else self._loader_state, True
        self._unkept.start_epoch()
        if batch == 0:
            return self._loader.iterate(epoch, 0, state)
        rng = read_rng(self._device)
        return self._loader.iterate(epoch, batch, state, lambda: restore_rng(rng, self._device))

    def _own_parts(self, position: Position) -> dict[str, Any]:
        """Returns what each process has of its own."""
        mid_epoch, place = position.is_mid_epoch, self._loader_state
        if self._in_place and (position.batch or position.epoch_done):
            place = self._read_place(in_pass=mid_epoch and not position.body_done)
        return {
            "loader": place,
            "rng": read_rng(self._device),
            "epoch_rng": self._epoch_rng if mid_epoch else None,
            "kept": read_kept(self._kept),
        }

    def _read_place(self, *, in_pass: bool) -> dict[str, Any] | None:
        """Returns the place of the loader; inside a pass alone of one that the loop keeps."""
        assert self._loader is not None
        is_kept = any(each is self._loader.given for each in self._kept.values())
        return None if is_kept and not in_pass else self._loader.state(in_pass=in_pass)

    def _check_batch_position(
        self, loader: EpochLoader, progress: Mapping[str, Any], path: Path
    ) -> None:
        """Refuses a place inside an epoch that the epoch does not have."""
        length, batch = loader.length, progress["batch_in_epoch"]
        if length is not None and batch > length and not progress["epoch_done"]:
            limit = "" if loader.limit is None else " by its limit (max_train_batches)"
            raise SnapshotError(
                f"{path} stands behind batch {batch} of epoch {progress['epoch']}, and an epoch of "
                f"the training loader has {length} batches{limit}. Give it the data and the batch "
                "size of the run that wrote it, or name a snapshot of an epoch's end."
            )


def _describe_pass(loader: EpochLoader) -> dict[str, Any]:
    """Returns what is known of its data, and how many batches of them the loop takes."""
    return {**describe_data(loader.given), "limit": loader.limit}


def _check_names(own: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    first = next(iter(saved), "")
    if first.startswith("_orig_mod.") and first not in own:
        raise SnapshotError(
            f"{path} has {first!r}: it was written with the names of a compiled model, before they "
            "became those of the plain model. Start a run of its own from its weights."
        )
