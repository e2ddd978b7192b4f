"""Names of parameters -> rows of the record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

__all__ = ["Groups", "Level", "group_parameters"]

Level: TypeAlias = Literal["global", "layer", "parameter"]
Groups: TypeAlias = dict[str, tuple[str, ...]]


def group_parameters(
    names: Iterable[str],
    level: Level,
    depth: int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Groups:
    """Returns row name -> names of the parameters in it, in the order of `names`.

    Args:
        names: as `model.named_parameters()` gives them, so in forward order for most models.
        level: `global` makes one row, `parameter` one each, `layer` one per module path cut at
            `depth`. A parameter that sits on the model itself is a layer of its own.
        depth: how many parts of a module's path name a layer: `blocks.3.attention.query` at 2 is
            `blocks.3`.
        include: glob patterns; a parameter that matches none is left out. None given: all are in.
        exclude: glob patterns; a parameter that matches one is left out.
    """
    rows: dict[str, list[str]] = {}
    for name in names:
        if include and not _matches(name, include):
            continue
        if not _matches(name, exclude):
            rows.setdefault(_row(name, level, depth), []).append(name)
    return {row: tuple(members) for row, members in rows.items()}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _row(name: str, level: Level, depth: int) -> str:
    if level == "global":
        return "global"
    module = name.split(".")[:-1]
    if level == "parameter" or not module:
        return name
    return ".".join(module[:depth])
