"""A copy of a loader, for a pass of its own. What a pass moves is copied: samplers with all that
they keep, the place of an iterable data set and its containers, random generators. What it only
reads is shared: the data.
"""

from __future__ import annotations

import copy
import io
import random
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from trainer_callback import UsageError

from .shares import samplers_of

__all__ = ["copy_loader", "copy_of_kept_place"]

_GENERATORS: Final = (
    *(random.Random, numpy.random.Generator, numpy.random.RandomState),
    torch.Generator,
)
_SHARED: Final = (FunctionType, ModuleType, type, nn.Module)
_CONTAINERS: Final = (list, dict, set, deque, bytearray)
_ARRAYS: Final = (torch.Tensor, numpy.ndarray)
_DEPTH: Final = 6
"""Objects in one another, in which generators are looked for."""
_MOST: Final = 64
"""Items of a container in which they are looked for: larger ones are data."""
_MOST_BYTES: Final = 2**26
"""Of an array that is copied with its iterable data set: larger ones are data."""


def copy_loader(loader: Any) -> Any:
    """Returns a loader over the same data, which a pass moves alone.

    Raises:
        UsageError: it has what cannot be copied, such as a generator or an open file.
    """
    if hasattr(loader, "seeded"):
        raise _refuse(loader, "Accelerate keeps its processes in step by it")
    return _Copies(loader).copy(loader)


def copy_of_kept_place(loader: Any) -> Any:
    """Returns a copy of a loader that keeps its place between passes, and so is at its beginning
    before the first alone; None of any other, and where it cannot be copied.
    """
    parts = [loader, getattr(loader, "dataset", None)]
    if not any(hasattr(each, "state_dict") or isinstance(each, Iterator) for each in parts):
        return None
    try:
        return copy_loader(loader)
    except UsageError:  # which is said where a copy is asked for
        return None


class _Copies:
    """The copies that belong to one loader; an object that is there twice is copied once."""

    def __init__(self, loader: Any) -> None:
        data = loader.dataset if isinstance(loader, DataLoader) else loader
        here = not isinstance(loader, DataLoader) or loader.num_workers == 0
        is_map = isinstance(loader, DataLoader) and not isinstance(data, IterableDataset)
        self._root, self._reads_on = loader, here and not is_map
        self._samplers: set[int] = set()
        self._known: dict[int, tuple[Any, Any]] = {}  # with the original, which keeps its id

    def copy(self, value: Any, depth: int = _DEPTH, owner: Any = None) -> Any:
        """Returns a copy of `value` if it, or something in it, is moved by a pass; else `value`.
        That goes for each container of `owner`, a sampler or what is read in this process.
        """
        if id(value) not in self._known:
            self._known[id(value)] = (value, value)
            self._known[id(value)] = (value, self._copy(value, depth, owner))
        return self._known[id(value)][1]

    def _copy(self, value: Any, depth: int, owner: Any) -> Any:
        if isinstance(value, _GENERATORS):
            return _copy_generator(value)
        if isinstance(value, FunctionType) and any(map(_holds_generator, value.__closure__ or ())):
            raise _refuse(self._root, f"its function {value.__name__} holds a random generator")
        if isinstance(value, _ARRAYS):
            return self._copy_array(value, owner)
        is_own = owner is not None and isinstance(value, (tuple, *_CONTAINERS))
        if is_own or type(value) in (list, tuple, dict):
            return self._copy_container(value, depth, owner)
        if isinstance(value, _SHARED) or depth == 0:
            return value
        if isinstance(value, (MethodType, partial)):
            return self._copy_callable(value, depth, owner)
        moves = self._reads_on or id(value) in self._samplers
        if moves and isinstance(value, (Iterator, io.IOBase)) and not _is_plain(value):
            raise _refuse(self._root, f"its {type(value).__name__} can be read once alone")
        return self._copy_object(value, depth, owner) if hasattr(value, "__dict__") else value

    def _copy_callable(self, value: MethodType | partial[Any], depth: int, owner: Any) -> Any:
        if isinstance(value, MethodType):
            bound = self.copy(value.__self__, depth - 1, owner)
            return value if bound is value.__self__ else MethodType(value.__func__, bound)
        args, keywords = (self.copy(each, depth, owner) for each in (value.args, value.keywords))
        is_same = args is value.args and keywords is value.keywords
        return value if is_same else partial(value.func, *args, **keywords)

    def _copy_array(self, value: Any, owner: Any) -> Any:
        if owner is None or isinstance(value, numpy.memmap):
            return value
        size = value.nbytes if isinstance(value, numpy.ndarray) else value.numel() * value.itemsize
        if size > _MOST_BYTES and not self._is_sampler(owner):
            return value
        return value.copy() if isinstance(value, numpy.ndarray) else value.detach().clone()

    def _copy_container(self, value: Any, depth: int, owner: Any) -> Any:
        is_own = owner is not None and not isinstance(value, tuple)
        made = copy.copy(value) if is_own else value
        if depth == 0 or isinstance(value, (set, bytearray)):
            return made
        of_sampler = self._is_sampler(owner)
        kinds: tuple[type, ...] = (object,)
        if len(value) > _MOST:
            if not of_sampler:
                return made
            depth, kinds = 1, _CONTAINERS + _ARRAYS
        changed: dict[Any, Any] = {}
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            is_data = isinstance(each, _ARRAYS) and not of_sampler
            if isinstance(each, kinds):
                one = self.copy(each, depth - 1, None if is_data else owner)
                if one is not each:
                    changed[key] = one
        if not changed:
            return made
        if isinstance(value, tuple):
            every = [changed.get(index, each) for index, each in enumerate(value)]
            return getattr(type(value), "_make", type(value))(every)
        made = made if is_own else copy.copy(value)
        for key, each in changed.items():
            made[key] = each
        return made

    def _copy_object(self, value: Any, depth: int, owner: Any) -> Any:
        is_loader = isinstance(value, DataLoader)
        if is_loader:
            self._samplers |= {id(each) for each in samplers_of(value)}
            self.copy(value.dataset, depth - 1)  # first, as samplers may hold the data too
        own = {name: each for name, each in vars(value).items() if name != "_iterator"}
        owner = self._owner(value, owner)
        found = {name: self.copy(each, depth - 1, owner) for name, each in own.items()}
        changed = {name: each for name, each in found.items() if each is not own[name]}
        is_moved = isinstance(value, (DataLoader, Sampler, Dataset, Iterator))
        is_moved = is_moved or value is self._root or owner is value
        if not is_moved and not changed and not self._is_sampler(owner):
            return value
        try:
            made = copy.copy(value)
        except Exception as error:
            if not is_moved and not changed:
                return value
            why = f"its {type(value).__name__} cannot be copied: {error}"
            raise _refuse(self._root, why) from error
        vars(made).update(changed)
        if is_loader:  # the workers of the copy are its own, and end with it
            vars(made).update(_iterator=None, persistent_workers=False)
        return made

    def _owner(self, value: Any, owner: Any) -> Any:
        """Returns whose containers those in `value` are, if a pass moves them; else None."""
        if self._is_sampler(value):
            return value
        if isinstance(value, DataLoader):
            return None
        is_data = hasattr(type(value), "__getitem__") and not isinstance(value, IterableDataset)
        is_read = hasattr(type(value), "__iter__") and not is_data
        if self._reads_on and (is_read or value is self._root):
            return value
        return owner if self._is_sampler(owner) and not is_data else None

    def _is_sampler(self, value: Any) -> bool:
        return isinstance(value, Sampler) or id(value) in self._samplers


def _holds_generator(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, _GENERATORS)
    except ValueError:  # it is empty
        return False


def _is_plain(value: Any) -> bool:
    """Whether it is an object of a Python class, whose place is in its attributes."""
    return hasattr(value, "__dict__") and not isinstance(value, io.IOBase)


def _copy_generator(value: Any) -> Any:
    if not isinstance(value, torch.Generator):
        return copy.deepcopy(value)
    made = torch.Generator(value.device)
    made.set_state(value.get_state())
    return made


def _refuse(loader: Any, why: str) -> UsageError:
    return UsageError(
        f"a pass over the training data beside that of the run would move it: {why} "
        f"({type(loader).__name__}). Hand over a loader that can be started again, open files in "
        "__iter__, and keep random generators in attributes."
    )
