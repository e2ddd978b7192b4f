"""Callbacks that look over the shoulder of another one: what it changes, what it keeps, what is on
the disk in the middle of a run.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from trainer.processes.rng import read_rng
from trainer.snapshots.model_state import same_bits
from trainer_callback import StateError, TrainerCallback, TrainerProtocol, hookimpl
from trainer_callback.state import to_plain

from .compare import find_difference

__all__ = ["Bystander", "DiskCopy", "StateWatch"]


class Bystander(TrainerCallback):
    """Keeps weights and random number generators as they are at the start of each batch and at the
    end.

    Attributes:
        moments: name of the moment -> what there was.
    """

    def __init__(self) -> None:
        self.moments: dict[str, dict[str, Any]] = {}

    @hookimpl(tryfirst=True)
    def on_batch_start(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._look(trainer, f"update {trainer.step + 1}, batch {trainer.batch_in_epoch}")

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        self._look(trainer, "the end of the run")

    def _look(self, trainer: TrainerProtocol, moment: str) -> None:
        self.moments[moment] = {
            "rng": read_rng(torch.device("cpu")),
            "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        }

    def find_change(self, other: Bystander) -> str | None:
        """Returns the first thing that is different in `other`'s run, in words, or None."""
        for moment, mine in self.moments.items():
            theirs = other.moments.get(moment)
            if theirs is None:
                return f"the run ended before {moment}"
            for key, generator in _GENERATORS.items():
                if find_difference(mine["rng"][key], theirs["rng"][key], key) is not None:
                    return _DRAWS.format(generator, moment)
            for name, value in mine["weights"].items():
                if not same_bits(value, theirs["weights"][name]):
                    return f"the weight {name!r} is another one at {moment}"
        return None


_GENERATORS: Final = {"python": "random", "numpy": "numpy.random", "torch": "torch"}
_DRAWS: Final = (
    "it draws from the global random numbers of {}, before {}. Use a generator of its own, such as "
    "torch.Generator().manual_seed(0)"
)


class StateWatch(TrainerCallback):
    """Looks at what the others return from `on_snapshot_save`.

    Attributes:
        problem: what a snapshot would turn into something else, in words, or None.
    """

    def __init__(self) -> None:
        self.problem: str | None = None

    @hookimpl(wrapper=True)
    def on_snapshot_save(  # type: ignore[override]
        self,
    ) -> Generator[None, list[Any], list[Any]]:
        answers = yield
        for answer in answers:
            self.problem = self.problem or self._find_problem(answer)
        return answers

    def _find_problem(self, answer: object) -> str | None:
        if not isinstance(answer, Mapping):
            return f"on_snapshot_save returned {answer!r} instead of a dictionary"
        try:
            kept = to_plain(answer)
        except StateError:  # with which the trainer ends the run
            return None
        return find_difference(answer, kept, "state")


class DiskCopy(TrainerCallback):
    """Copies the output directory once the snapshot of an update is durable: what a killed run
    leaves behind. Processes of the callback's may write there meanwhile.
    """

    def __init__(self, step: int, target: Path) -> None:
        self.step = step
        self.target = target

    def on_snapshot_saved(  # type: ignore[override]
        self, trainer: TrainerProtocol, step: int
    ) -> None:
        if step == self.step and trainer.output_dir is not None:
            source = trainer.output_dir
            shutil.copytree(source, self.target, symlinks=True, copy_function=_copy_if_there)


def _copy_if_there(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)
