"""The metrics of a Hugging Face trainer by the names that plugins know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any, Final

from torch import Tensor

__all__ = ["PREFIX", "name_validated", "pick_other"]

PREFIX: Final = "eval"

_OWN: Final = frozenset({"loss", "grad_norm", "learning_rate", "epoch"})
"""What the run logs by itself, from its own means."""

_SPEEDS: Final = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")
_MEMORY: Final = ("_mem_",)


def name_validated(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a validation: `eval_loss` is `val_loss`, and so on; how long it took
    is none of them.
    """
    start = f"{PREFIX}_"
    return {
        f"val_{name.removeprefix(start)}": value
        for name, value in _numbers(found)
        if name.startswith(start) and not name.endswith(_SPEEDS) and not _is_memory(name)
    }


def pick_other(logs: Mapping[str, Any]) -> dict[str, float]:
    """Returns what else a trainer logs in training; nothing of its last words, which sum it up."""
    if "train_runtime" in logs:
        return {}
    return {name: value for name, value in _numbers(logs) if name not in _OWN}


def _is_memory(name: str) -> bool:
    return any(part in name for part in _MEMORY)


def _numbers(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            yield name, float(value.item())
        elif isinstance(value, Number) and not isinstance(value, (bool, complex)):
            yield name, float(value)  # type: ignore[arg-type]
