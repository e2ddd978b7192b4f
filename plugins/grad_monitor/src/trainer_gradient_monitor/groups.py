"""Names of parameters -> rows of the record. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

__all__ = ["Groups", "Level", "find_own", "group_parameters", "keep", "name_part"]

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


def find_own(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns the names of the optimizer's parameters, in the model's order."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


def keep(groups: Groups, names: Iterable[str]) -> Groups:
    """Returns of each row what is among `names`, and only rows of which something is."""
    known = {*names}
    kept = {row: tuple(n for n in members if n in known) for row, members in groups.items()}
    return {row: members for row, members in kept.items() if members}


def name_part(names: Sequence[str], taken: Collection[str]) -> str:
    """Returns a name for a part of the model: the module that all of its parameters are in, or the
    first of them where there is none, or its name is taken.
    """
    paths = [name.split(".")[:-1] for name in names]
    common = takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
    name = ".".join(parts[0] for parts in common)
    return name if name and name not in taken else names[0]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _row(name: str, level: Level, depth: int) -> str:
    if level == "global":
        return "global"
    module = name.split(".")[:-1]
    if level == "parameter" or not module:
        return name
    return ".".join(module[:depth])
