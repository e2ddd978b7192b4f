"""The number of items in a batch: what its mean loss weighs.

Letters: B items of a batch.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch.nn.utils.rnn import PackedSequence

from trainer_callback.checks import takes

from ..config import ConfigError
from .batches import parts_of

__all__ = ["BatchSizes"]

logger: logging.Logger = logging.getLogger("trainer")


class BatchSizes:
    """Counts the items of validation batches: as the user's function does; else by what the parts
    of a batch and its loader say. Where these contradict each other, that is said once.
    """

    def __init__(self, function: Callable[[Any], int] | None) -> None:
        """Takes the user's function, batch -> B, or None.

        Raises:
            ConfigError: it is no function.
        """
        if function is not None and not takes(function, 1):
            raise ConfigError(
                f"Trainer: batch_size takes a function, and got {function!r}. It is called with a "
                "batch, for the number of its items: lambda batch: len(batch['labels']). How large "
                "batches are is the DataLoader's own batch_size."
            )
        self._function = function
        self._has_warned = False
        self._guess: int | None = None

    def count(self, batch: Any, promised: int | None) -> int:
        """Returns B, at least 0.

        Args:
            batch: as the loader gave it.
            promised: how many items the loader made it of, where that is known.

        Raises:
            ConfigError: the user's function answered something else.
        """
        if self._function is not None:
            return _check(self._function(batch))
        firsts: list[int] = []
        others: set[int] = set()
        _look(batch, firsts, others)
        agreed = len({*firsts}) == 1
        if promised is not None and (promised in firsts or not firsts):
            return promised
        if promised is None and agreed:
            self._note(firsts[0], is_sure=not others or _is_flat(batch))
            return firsts[0]
        by_loader = promised is not None and (promised in others or not agreed)
        size = promised if by_loader else firsts[0] if firsts else 1
        assert size is not None
        self._warn(size, firsts, promised)
        return size

    def _note(self, size: int, *, is_sure: bool) -> None:
        """Says, where batches differ, that their first dimension may be another than that of the
        items: as long as all are alike, their weights do not matter.
        """
        if self._guess is None:
            self._guess = size
        if size != self._guess and not is_sure and not self._has_warned:
            self._has_warned = True
            logger.info(
                "the validation loader does not say how many items a batch has: the first "
                "dimension was taken, %d and %d, by which val_loss weighs the batches. Where that "
                "is another (time first), pass Trainer(..., batch_size=lambda batch: ...).",
                self._guess,
                size,
            )

    def _warn(self, size: int, firsts: list[int], promised: int | None) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        found = ", ".join(map(str, dict.fromkeys(firsts))) or "nothing"
        loader = "" if promised is None else f", the loader's batch size {promised}"
        logger.warning(
            "the number of items in a batch of the validation is not certain: its parts say %s%s. "
            "%d was taken, by which val_loss weighs the batch, and so on. Pass the true one as a "
            "function: Trainer(..., batch_size=lambda batch: ...).",
            found,
            loader,
            size,
        )


def _check(answer: Any) -> int:
    try:
        size = None if isinstance(answer, bool) else operator.index(answer)
    except TypeError:
        size = None
    if size is None or size < 0:
        raise ConfigError(
            f"Trainer: batch_size answered {answer!r} for a batch. Answer the number of "
            "its items, an int of at least 0, such as len(batch['labels'])."
        )
    return size


def _is_flat(value: Any) -> bool:
    """Whether a part of a batch has one dimension only, as labels have, which is that of the
    items.
    """
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return value.ndim == 1
    if isinstance(value, (str, bytes, PackedSequence)):
        return True
    parts = value if isinstance(value, Mapping) else parts_of(value) or {}
    items = value if isinstance(value, (list, tuple)) else parts.values()
    return any(map(_is_flat, items))


def _look(value: Any, firsts: list[int], others: set[int]) -> None:
    """Collects what may be B: in `firsts` what usually is (the first dimension of a tensor, the
    length of a list of strings, numbers or dicts), in `others` what it is now and then (another
    dimension, the length of a list of tensors).
    """
    if isinstance(value, (str, bytes, int, float)):
        return
    if isinstance(value, PackedSequence):
        firsts.append(int(value.batch_sizes[0]))
    elif isinstance(value, (torch.Tensor, numpy.ndarray)):
        if value.ndim:
            firsts.append(int(value.size(0) if isinstance(value, torch.Tensor) else len(value)))
            nested = isinstance(value, torch.Tensor) and value.is_nested
            others.update(() if nested else value.shape[1:])
    elif isinstance(value, Mapping):
        for item in value.values():
            _look(item, firsts, others)
    elif isinstance(value, (list, tuple)):
        _look_at_list(value, firsts, others)
    else:
        for item in (parts_of(value) or {}).values():
            _look(item, firsts, others)


def _look_at_list(value: list[Any] | tuple[Any, ...], firsts: list[int], others: set[int]) -> None:
    inner: list[int] = []
    for item in value:
        _look(item, inner, others)
    if not hasattr(value, "_fields"):  # the fields of a named tuple are no items
        others.add(len(value))
        if value and (not inner or all(isinstance(item, Mapping) for item in value)):
            firsts.append(len(value))
    firsts += inner
