"""The total norm of gradients, and statistics of groups of them.

The room knows tensors and their names; it knows no model, and nothing here copies from a device to
the host. What is copied to a device are index tensors: they depend on names and shapes only, and
are made once.

Letters: P pieces (gradients, large ones cut), k pieces of n elements each stacked, R rows (groups
of parameters), M memberships of a piece in a row, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.linalg import vector_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "COLUMNS",
    "Index",
    "Named",
    "Norms",
    "Shards",
    "make_index",
    "measure",
    "total_norm",
]

COLUMNS: Final = ("norm", "rms", "max_abs", "mean", "std", "zero_fraction", "nonfinite")
"""What `measure` returns. `std` divides by the count, so that rms² = mean² + std²."""

Named: TypeAlias = Sequence[tuple[str, Tensor]]
"""Gradients, each with its parameter's name; of a sharded one what this process holds."""

Shards: TypeAlias = "Mapping[str, ProcessGroup]"
"""Name of a sharded parameter -> the processes that hold its parts."""

Norms: TypeAlias = "Sequence[tuple[Sequence[str], Tensor]]"
"""Names of parameters, and a 2-norm of each (P,); one that was cut is there several times."""

Index: TypeAlias = "Callable[[tuple[int, ...], torch.device], Tensor]"
"""Numbers -> an index tensor on a device."""

_CPU_PIECE: Final = 1 << 18
"""Elements: a piece and a copy of it, 2 MB, stay in a cache while several reductions read them. A
float32 norm of as many is right to 1e-5; of 38 million at once it is 0.3 % too low on a CPU."""

_DEVICE_PIECE: Final = 1 << 24
"""Elements: up to here a float32 counts exactly; the copies that are made stay below 64 MB."""

_SUM, _SPREAD, _PEAK, _ZEROS, _NONFINITE, _COUNT, _POWERS = range(7)
"""What is known of a piece: the spread are squares around its mean, the powers, which only norms of
other orders than 2 and inf need, those of what the peak makes at most 1."""


def total_norm(gradients: Named, shards: Shards, home: torch.device) -> tuple[Tensor, Norms]:
    """Returns the 2-norm over all gradients of all processes, 0-dim, on `home`, float32 (float64
    where one of them is): the norm of norms, as in `torch.nn.utils.get_total_norm`. And those of
    this process, where they are.
    """
    names: defaultdict[tuple[Any, torch.dtype, torch.device], list[str]] = defaultdict(list)
    pieces: defaultdict[tuple[Any, torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for name, piece in zip(*_cut(gradients), strict=True):
        kind = (shards.get(name), piece.dtype, piece.device)
        names[kind].append(name)
        pieces[kind].append(piece)
    own: list[tuple[Sequence[str], Tensor]] = []
    found: dict[ProcessGroup | None, list[Tensor]] = {None: [torch.zeros(0, device=home)]}
    for kind, same in pieces.items():
        group, dtype, _ = kind
        norms = torch.stack(torch._foreach_norm(same, 2, dtype=_widen(dtype)))
        own.append((names[kind], norms))
        found.setdefault(group, []).append(norms.to(home))
    whole: list[Tensor] = []
    for group, parts in found.items():
        norms = torch.cat(parts)
        whole += [norms] if group is None else _gather(vector_norm(norms).reshape(1), group)
    return vector_norm(torch.cat(whole)), own


def measure(
    gradients: Named,
    shards: Shards,
    home: torch.device,
    rows: Mapping[str, Sequence[str]],
    norm_type: float,
    *,
    index: Index,
) -> tuple[Tensor, Tensor]:
    """Returns the `COLUMNS` of each row (R, C) and the 2-norm over all gradients (0-dim), on
    `home`, float32 (float64 where a gradient is).

    Args:
        rows: name -> the parameters in it, all of them with a gradient.
        norm_type: order of the norm in column `norm`.
        index: of `make_index`.
    """
    names, pieces = _cut(gradients)
    order, table = _tabulate(pieces, home, norm_type, index)
    owners = [names[place] for place in order]
    everything = [name for name, _ in gradients]
    sums = _add_up(table, owners, shards, [*rows.values(), everything], norm_type, index=index)
    is_wide = any(gradient.dtype is torch.float64 for _, gradient in gradients)
    dtype = torch.float64 if is_wide else torch.float32
    return _finish(sums, norm_type).to(dtype)[:-1], _squares(sums)[-1].sqrt().to(dtype)


def _cut(gradients: Named) -> tuple[list[str], list[Tensor]]:
    """Returns the P pieces, and of each the parameter. Of a sparse gradient its values, repeated
    indices added up.
    """
    names: list[str] = []
    pieces: list[Tensor] = []
    for name, gradient in gradients:
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        values = torch.view_as_real(values) if values.is_complex() else values
        limit = _limit(values.device)
        is_long = values.numel() > limit
        cut = torch.split(values.reshape(-1), limit) if is_long else (values,)
        names += [name] * len(cut)
        pieces += cut
    return names, pieces


def _limit(device: torch.device) -> int:
    return _CPU_PIECE if device.type == "cpu" else _DEVICE_PIECE


def _tabulate(
    pieces: Sequence[Tensor], home: torch.device, norm_type: float, index: Index
) -> tuple[list[int], Tensor]:
    """Returns the order in which the pieces were reduced (P), and what is known of each (7, P).

    Those of one shape are stacked, as many as fit a cache: a device then has few launches.
    """
    shapes: defaultdict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = defaultdict(list)
    for place, piece in enumerate(pieces):
        if piece.numel():
            shapes[piece.shape, piece.dtype, piece.device].append(place)
    wide = torch.float32 if home.type == "mps" else torch.float64
    order: list[int] = []
    found = [[torch.zeros(0, device=home)] * 6]
    for (shape, dtype, device), alike in shapes.items():
        scratch = torch.empty(0, dtype=_widen(dtype), device=device)
        height = max(1, _limit(device) // shape.numel())
        for start in range(0, len(alike), height):
            some = alike[start : start + height]
            same = [pieces[place] for place in some]
            x = same[0][None] if len(same) == 1 else torch.stack(same)
            found.append(_reduce(x.reshape(len(same), -1).to(scratch), scratch, norm_type))
            order += some
    counts = index(tuple(pieces[place].numel() for place in order), home)
    columns = [torch.cat([part.to(home) for part in parts]) for parts in zip(*found, strict=True)]
    columns.insert(_COUNT, counts.to(columns[0]))
    return order, torch.stack(columns).to(wide)


def _reduce(x: Tensor, scratch: Tensor, norm_type: float) -> list[Tensor]:
    """Returns sum, spread, peak, zeros, non-finite entries and powers of each row of x (k, n); by
    the powers no order of the norm over- or underflows.
    """
    found = _reduce_in_cache(x, scratch) if x.is_cpu else _reduce_on_device(x)
    peak = powers = found[_PEAK]
    if norm_type not in (2.0, float("inf")):
        unit = torch.where(peak > 0, peak, 1.0)[:, None]
        size = torch.div(x, unit, out=scratch.resize_(x.shape)).abs_()
        powers = size.pow_(norm_type).sum(1)
    return [*found, powers]


def _reduce_on_device(x: Tensor) -> list[Tensor]:
    """As `_reduce`, in few passes over x. The order 0 of a norm counts what is not zero."""
    size = x.shape[1]
    variance, mean = torch.var_mean(x, 1, correction=0)
    peak = vector_norm(x, float("inf"), 1)
    zeros = size - vector_norm(x, 0, 1)
    bad = torch.sub(x, x, out=torch.empty(x.shape, dtype=torch.float16, device=x.device))  # NaN
    return [mean * size, variance * size, peak, zeros, vector_norm(bad, 0, 1, dtype=x.dtype)]


def _reduce_in_cache(x: Tensor, scratch: Tensor) -> list[Tensor]:
    """As `_reduce`, by what a CPU does fast: its norms of order inf and 0 take ten times as long,
    and so do comparisons that are not written as floats.
    """
    size = torch.abs(x, out=scratch.resize_(x.shape))
    is_wide = x.dtype is torch.float64
    bits, infinite = (torch.int64, 0x7FF0 << 48) if is_wide else (torch.int32, 0x7F80 << 16)
    most = size.view(bits).amax(1)  # magnitudes are in the order of their bits
    peak = most.view(x.dtype)
    nonfinite = torch.zeros_like(peak)
    if max(most.tolist()) >= infinite:  # nobody waits for a CPU
        nonfinite = torch.lt(size, float("inf"), out=size).sum(1).neg_().add_(x.shape[1])
    zeros = torch.eq(x, 0, out=size).sum(1)
    total = x.sum(1)
    centred = torch.sub(x, total[:, None] / x.shape[1], out=size)
    return [total, centred.square_().sum(1), peak, zeros, nonfinite]


def _add_up(
    table: Tensor,
    owners: list[str],
    shards: Shards,
    rows: list[Sequence[str]],
    norm_type: float,
    *,
    index: Index,
) -> Tensor:
    """Returns what all processes know of each row of parameters (7, R), from what this one knows of
    its pieces (7, P), which belong to `owners`.
    """
    home, count = table.device, len(rows)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, owner in enumerate(owners):
        places[owner].append(place)
    parts: list[Tensor] = []
    for group in dict.fromkeys([None, *(shards.get(name) for name in rows[-1])]):
        own = [
            (place, row)
            for row, names in enumerate(rows)
            for name in names
            if shards.get(name) is group
            for place in places[name]
        ]
        members, row = index(tuple(chain.from_iterable(own)), home).reshape(-1, 2).T
        sums = _merge(table[:, members], row, count, norm_type)
        parts += [sums] if group is None else _gather(sums, group)
    if len(parts) > 1:
        row = index((*range(count),) * len(parts), home)
        sums = _merge(torch.cat(parts, 1), row, count, norm_type)
    return sums


def _merge(table: Tensor, row: Tensor, count: int, norm_type: float) -> Tensor:
    """Returns what is known of `count` rows (7, R) from what is known of their members (7, M), each
    of which is in the `row` (M,), as if each row were one piece.
    """
    merged = table.new_zeros(len(table), count).index_add_(1, row, table)
    mean = merged[_SUM] / merged[_COUNT].clamp(min=1)
    shift = table[_SUM] / table[_COUNT].clamp(min=1) - mean[row]
    merged[_SPREAD].index_add_(0, row, table[_COUNT] * shift.square())
    peak = table.new_zeros(count).scatter_reduce_(0, row, table[_PEAK], "amax")
    merged[_PEAK] = peak
    share = (table[_PEAK] / torch.where(peak > 0, peak, 1.0)[row]).pow(norm_type)
    merged[_POWERS] = peak.new_zeros(count).index_add_(0, row, share * table[_POWERS])
    return merged


def _squares(table: Tensor) -> Tensor:
    return table[_SPREAD] + table[_SUM].square() / table[_COUNT].clamp(min=1)


def _finish(sums: Tensor, norm_type: float) -> Tensor:
    """Returns the columns (R, C) from what is known of each row (7, R)."""
    n, peak = sums[_COUNT].clamp(min=1), sums[_PEAK]
    squares, norm = _squares(sums), peak
    if norm_type == 2.0:
        norm = squares.sqrt()
    elif norm_type != float("inf"):
        norm = peak * sums[_POWERS].pow(1 / norm_type)
    deviation, mean = (sums[_SPREAD] / n).sqrt(), sums[_SUM] / n
    found = [norm, (squares / n).sqrt(), peak, mean, deviation, sums[_ZEROS] / n]
    return torch.stack([*found, sums[_NONFINITE]], 1)


def _gather(values: Tensor, group: ProcessGroup) -> list[Tensor]:
    """Returns `values` of every process of `group`, by rank."""
    found = [torch.empty_like(values) for _ in range(group.size())]
    torch.distributed.all_gather(found, values.contiguous(), group)
    return found


def make_index() -> Index:
    """Returns what makes index tensors, and keeps those it has made, for copying them to a device
    again would be a wait. Whoever measures has one: what a module keeps stays on a card for good.
    """

    def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    return lru_cache(maxsize=64)(index)


def _widen(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
