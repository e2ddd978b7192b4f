"""What changes while a run trains, and no snapshot keeps: noticed where it can be seen."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.place import keeps_place
from ..data.shares import samplers_of
from ..step.parameters import name_parameters
from .model_state import describe_form

__all__ = ["UnsavedChanges"]

logger: logging.Logger = logging.getLogger("trainer")

_LOOKS: Final = 3
_MOST_BYTES: Final = 1 << 20
"""Of a buffer that is looked at: larger ones are masks and caches, and copies of them cost."""


class UnsavedChanges:
    """Compares buffers that are not persistent, and what the data side has of its own, with what
    they were when training began. A run looks a few times at its beginning, and warns once of each.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Looks at nothing yet."""
        self._model = model
        self._optimizers = optimizers
        self._built: dict[str, str] | None = None
        self._loader: Iterable[Any] = ()
        self._kept: Collection[Any] = ()
        self._buffers: dict[str, Tensor] = {}
        self._data: dict[str, str] = {}
        self._changed: list[str] = []
        self._epochs = 0
        self._looks = 0

    def start(self, *, repeats: bool) -> None:
        """Remembers what a snapshot has to fit, when callbacks have set it up.

        Args:
            repeats: what they change later, they do again at a resume.
        """
        self._built, self._repeats = _list_parts(self._model, self._optimizers), repeats
        self.changed: str | None = None

    def use(self, loader: Iterable[Any], kept: Collection[Any]) -> None:
        """Looks at `loader` from here on; the loop keeps some things itself."""
        self._loader, self._kept, self._data, self._epochs = loader, kept, {}, 0

    def start_epoch(self) -> None:
        """Remembers, before the first epoch of this process, how all is; compares the data side
        before the next ones: inside an epoch, what a loader counts is its place.
        """
        self._epochs += 1
        if self._epochs == 1:
            self._buffers = _read_buffers(self._model)
            self._data = _read_data(self._loader, self._kept)
        elif self._epochs <= 1 + _LOOKS and self._data:
            now = _read_data(self._loader, self._kept)
            self._changed = [name for name, was in self._data.items() if now.get(name) != was]

    def warn(self) -> None:
        """Warns of what has changed; called where a snapshot is taken."""
        self._warn_of_new()
        if self._changed:
            logger.warning(
                "no snapshot keeps %s, which changes from epoch to epoch: a resumed run may see "
                "other data. Draw from the global generators, or follow set_epoch(epoch), which is "
                "called of a sampler or loader that has it.",
                " and ".join(self._changed),
            )
            self._changed, self._data = [], {}
        self._looks += 1
        if self._looks <= _LOOKS and self._buffers:
            now = _read_buffers(self._model)
            names = [name for name, was in self._buffers.items() if _differs(was, now.get(name))]
            if names:
                self._buffers = {}
                logger.warning(
                    "no snapshot keeps the buffer %s, which changes while the model trains and is "
                    "not persistent: a resumed run starts with another. Register it with "
                    "persistent=True, if it is more than a cache.",
                    " and ".join(names),
                )

    def _warn_of_new(self) -> None:
        """Warns, once, of what the model or the optimizer has not had when the run began: what is
        built anew for a resume has it neither, and the snapshot does not fit it.
        """
        if self._built is None:
            return
        now = _list_parts(self._model, self._optimizers)
        new = [name for name in {**self._built, **now} if now.get(name) != self._built.get(name)]
        if new:
            names = f"{new[0]}{f' (and {len(new) - 1} more)' if len(new) > 1 else ''}"
            was, is_now = (each.get(new[0], "not there") for each in (self._built, now))
            self._built, self.changed = None, f"{names} was {was} and became {is_now}"
            logger.log(
                logging.INFO if self._repeats else logging.WARNING,
                "snapshots from here on fit no model and optimizer as this run was given them: %s "
                "was %s then, and is %s. Let the callback do that again in on_setup, which comes "
                "before a snapshot is loaded; or do it before the run is built.",
                *(names, was, is_now),
            )


def _list_parts(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, str]:
    """Returns what a snapshot has to fit: tensors of the model, and the groups of optimizers."""
    found = {repr(name): describe_form(value) for name, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        which = "the optimizer" if len(optimizers) == 1 else f"optimizer {number}"
        for index, names in enumerate(name_parameters(model, optimizer)):
            found[f"group {index} of {which}"] = f"of {len(names)} parameters"
    return found


def _read_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the bytes of each small buffer that is in no state_dict, by name, on the CPU."""
    found = {}
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if (
                buffer is None
                or buffer.layout != torch.strided
                or buffer.is_meta
                or buffer.is_quantized
                or buffer.nbytes > _MOST_BYTES
            ):
                continue
            own = buffer.detach().cpu().clone(memory_format=torch.contiguous_format)
            found[f"{path}.{name}".lstrip(".")] = own.reshape(-1).view(torch.uint8)
    return found


def _differs(was: Tensor, now: Tensor | None) -> bool:
    """Whether a buffer has other values; of another size, it is a cache that has grown."""
    return now is not None and was.shape == now.shape and not torch.equal(was, now)


def _read_data(loader: Iterable[Any], kept: Collection[Any]) -> dict[str, str]:
    """Returns the state of what the objects of the data side have of their own, by name: random
    generators, and the numbers of samplers, of somebody's own loader, and of a data set that tells
    its place.
    """
    found: dict[str, str] = {}
    for what, part in _objects_of(loader):
        if hasattr(part, "set_epoch") or any(part is each for each in kept):
            continue  # which follow the epoch, or are kept
        if what == "loader" and keeps_place(part):
            continue
        numbers = what != "data set" or hasattr(part, "load_state_dict")
        for name, value in getattr(part, "__dict__", {}).items():
            state = _read_state(value, numbers=numbers)
            is_seeded = what == "sampler" and name == "generator"  # by the trainer
            if state is not None and not is_seeded:
                found[f"{name!r} of the {what} {type(part).__name__}"] = state
    return found


def _objects_of(loader: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields what the data side consists of, behind its kind."""
    if not isinstance(loader, DataLoader):
        yield "loader", loader
        return
    yield from (("sampler", sampler) for sampler in samplers_of(loader))
    data: Any = loader.dataset
    while data is not None:  # through each Subset
        yield "data set", data
        data = getattr(data, "dataset", None)


def _read_state(value: Any, *, numbers: bool) -> str | None:
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, numpy.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, numpy.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, torch.Generator):
        return repr(value.get_state().tolist())
    return repr(value) if numbers and isinstance(value, (int, float)) else None
