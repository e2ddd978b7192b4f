"""Sums, norms and extremes of many tensors at once, each read from memory once.

The room knows tensors and their names; it knows no model, and nothing here copies from a device to
the host.

Letters: B blocks (tensors, large ones cut into pieces that fit a cache), k blocks of n elements
each stacked, S sharded tensors, W processes that hold their shards, M memberships of a block in a
group, R groups, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["COLUMNS", "Blocks", "combine", "reduce"]

COLUMNS: Final = ("norm", "rms", "max_abs", "mean", "std", "zero_fraction", "nonfinite")
"""What `combine` returns. `std` divides by the count, so that rms² = mean² + std²."""

_CPU_BLOCK: Final = 1 << 17
"""Elements: a block and a scratch of its size, 1 MB, stay in the cache of one core while several
reductions read them. A float32 norm of as many is right to 1e-5 (of 38 million at once it is 0.3 %
too low on a CPU)."""

_DEVICE_BLOCK: Final = 1 << 24
"""Elements: up to here a float32 counts exactly, and a device needs few launches."""

_COUNT, _SUM, _PEAK, _ZEROS, _POWERS, _SQUARES, _DEVIATION, _NONFINITE = range(8)
"""What is known of a block: each but the peak adds up over blocks."""


class Blocks:
    """Gradients as blocks, with the norms that were computed so far.

    Attributes:
        tensors: the B blocks: whole gradients, or flat pieces of large ones, in their own dtype. Of
            a sharded gradient, what this process holds.
        names: of the parameter that each block is from.
        home: the device on which everything comes together.
        groups: name of a sharded parameter -> the processes that hold its parts.
        norms: block -> its 2-norm, 0-dim, float32 (float64 where the block is); empty until
            computed.
    """

    def __init__(
        self,
        gradients: Iterable[tuple[str, Tensor]],
        home: torch.device,
        groups: Mapping[str, ProcessGroup],
    ) -> None:
        """Cuts gradients, each with its parameter's name; of a sharded one, this process's part."""
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.home = home
        self.groups = groups
        self.norms: dict[int, Tensor] = {}
        self._all_norms: Tensor | None = None
        for name, gradient in gradients:
            pieces = _cut(_values(gradient))
            self.tensors += pieces
            self.names += [name] * len(pieces)

    @property
    def dtype(self) -> torch.dtype:
        """In which all numbers of the blocks have their place: float32, or float64 where a block
        is.
        """
        wide = any(tensor.dtype is torch.float64 for tensor in self.tensors)
        return torch.float64 if wide else torch.float32

    def all_norms(self) -> Tensor:
        """Returns the 2-norm of every block (B,), float32 (float64 where a block is)."""
        if not self.tensors:
            return torch.zeros(0, device=self.home)
        if not self.norms:
            for keys, same in _by_kind(dict(enumerate(self.tensors))):
                self.norms.update(zip(keys, _norms(same), strict=True))
        if self._all_norms is None:
            norms = [self.norms[key].to(self.home) for key in range(len(self.tensors))]
            self._all_norms = torch.stack(norms)
        return self._all_norms

    def total_norm(self) -> Tensor:
        """Returns the 2-norm over all blocks of all processes, 0-dim; the norm of norms, as in
        `torch.nn.utils.get_total_norm`."""
        if not self.groups:
            return self.own_norm()
        norms = self.all_norms()
        whole, shards = self._divide()
        parts = [norms[whole]]
        for group, places in shards.items():
            parts += _gather_all(torch.linalg.vector_norm(norms[places]).reshape(1), group)
        total: Tensor = torch.linalg.vector_norm(torch.cat(parts))
        return total

    def own_norm(self) -> Tensor:
        """Returns the 2-norm over the blocks of this process, 0-dim."""
        total: Tensor = torch.linalg.vector_norm(self.all_norms())
        return total

    def everywhere(self, table: Tensor, norm_type: float) -> tuple[Tensor, list[str]]:
        """Returns rows like those of `table` (B, 8), and the parameter of each: of whole tensors
        those of their blocks, of sharded ones a row for the part of each process (W * S, 8). A part
        that is empty adds nothing, whatever its row is combined with.
        """
        if not self.groups:
            return table, self.names
        whole, shards = self._divide()
        rows, names = [table[whole]], [self.names[block] for block in whole]
        for group, places in shards.items():
            owners = [self.names[place] for place in places]
            number = {name: n for n, name in enumerate(dict.fromkeys(owners))}
            row = torch.tensor([number[name] for name in owners], device=self.home)
            parts = _gather_all(_merge(table[places], row, len(number), norm_type), group)
            rows += parts
            names += [*number] * len(parts)
        return torch.cat(rows), names

    def _divide(self) -> tuple[list[int], dict[ProcessGroup, list[int]]]:
        """Returns the blocks of whole tensors, and those of sharded ones by their processes."""
        whole: list[int] = []
        shards: defaultdict[ProcessGroup, list[int]] = defaultdict(list)
        for block, name in enumerate(self.names):
            group = self.groups.get(name)
            (whole if group is None else shards[group]).append(block)
        return whole, shards


def _gather_all(values: Tensor, group: ProcessGroup) -> list[Tensor]:
    """Returns `values` of every process of `group`, by rank."""
    found = [torch.empty_like(values) for _ in range(group.size())]
    torch.distributed.all_gather(found, values.contiguous(), group)
    return found


def _values(gradient: Tensor) -> Tensor:
    """Returns a gradient's numbers; of a sparse one its values, repeated indices added up."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


def _block_limit(device: torch.device) -> int:
    return _CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK


def _cut(values: Tensor) -> tuple[Tensor, ...]:
    size = values.numel()
    if size <= _CPU_BLOCK or size <= (limit := _block_limit(values.device)):
        return (values,)
    return torch.split(values.reshape(-1), limit)


def _by_kind(blocks: Mapping[int, Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yields the blocks of one dtype on one device together, with their keys."""
    kinds: defaultdict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
    for key, block in blocks.items():
        kinds[block.dtype, block.device].append(key)
    for keys in kinds.values():
        yield keys, [blocks[key] for key in keys]


def _stacks(blocks: Mapping[int, Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yields blocks of one dtype, device and shape together, as many as fit a cache, with their
    keys."""
    for keys, same in _by_kind(blocks):
        limit = _block_limit(same[0].device)
        shapes: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for key, block in zip(keys, same, strict=True):
            shapes[block.shape].append(key)
        for shape, alike in shapes.items():
            height = max(1, limit // max(1, shape.numel()))
            for start in range(0, len(alike), height):
                some = alike[start : start + height]
                yield some, [blocks[key] for key in some]


def _norms(same: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns the 2-norm of each tensor, all of one dtype and device; each as if it were alone."""
    return torch._foreach_norm(list(same), 2, dtype=_wide(same[0].dtype))


def reduce(blocks: Blocks, wanted: set[int], norm_type: float) -> Tensor:
    """Returns a row of sums for each block (B, 8); those of unwanted blocks hold less.

    A block is read from memory once and reduced several times while the cache holds it. What takes
    more arithmetic (counting non-finite entries, squares around a mean far from zero) is done on a
    CPU for the blocks that need it, on a device for all: there, asking which would be a
    synchronisation.
    """
    home = blocks.home
    table = torch.zeros(
        *(len(blocks.tensors), 8),
        dtype=torch.float32 if home.type == "mps" else torch.float64,
        device=home,
    )
    looked = _look_once(blocks, wanted, norm_type, table)
    count, squares = table[:, _COUNT].clamp(min=1), table[:, _SQUARES]
    squares.copy_(blocks.all_norms()).square_()
    mean = table[:, _SUM] / count
    table[:, _DEVIATION] = squares - mean.square() * count
    if home.type == "cpu":
        doubtful = (table[:, _DEVIATION] < 0.75 * squares) | ~table[:, _PEAK].isfinite()
        looked = doubtful.nonzero().flatten().tolist()
    _look_again({key: blocks.tensors[key] for key in looked}, mean, table)
    return table


def _look_once(blocks: Blocks, wanted: set[int], norm_type: float, table: Tensor) -> list[int]:
    """Fills in what one read of each block tells, and its norm; returns the blocks looked at."""
    is_fresh, scratch = not blocks.norms, torch.empty(0)
    order: list[int] = []
    found: list[tuple[Tensor, ...]] = []
    for keys, same in _stacks(dict(enumerate(blocks.tensors))):
        if is_fresh:
            blocks.norms.update(zip(keys, _norms(same), strict=True))
        if same[0].numel() and not wanted.isdisjoint(keys):
            x = _matrix(same)
            if (scratch.shape, scratch.dtype, scratch.device) != (x.shape, x.dtype, x.device):
                scratch = torch.empty_like(x)
            order += keys
            found.append(_reduce_rows(x, scratch, norm_type))
    if order:
        counts = torch.tensor([blocks.tensors[key].numel() for key in order]).to(table)
        columns = [counts, *_gather(found, table)]
        known = [_COUNT, _SUM, _PEAK, _ZEROS, _POWERS][: len(columns)]
        rows = torch.tensor(order, device=table.device)
        for column, values in zip(known, columns, strict=True):
            table[rows, column] = values
    return order


def _look_again(blocks: Mapping[int, Tensor], mean: Tensor, table: Tensor) -> None:
    """Fills in squares around the mean and the count of non-finite entries."""
    order: list[int] = []
    found: list[tuple[Tensor, ...]] = []
    for keys, same in _stacks(blocks):
        x = _matrix(same)
        centred = x - mean[keys].to(x)[:, None]
        order += keys
        found.append((centred.square_().sum(1), torch.ne(x - x, 0, out=centred).sum(1)))
    if order:
        rows = torch.tensor(order, device=table.device)
        table[rows, _DEVIATION], table[rows, _NONFINITE] = _gather(found, table)


def _reduce_rows(x: Tensor, scratch: Tensor, norm_type: float) -> tuple[Tensor, ...]:
    """Returns sum, peak and zeros of each row of x (k, n), and its powers if need be.

    Powers are of what the peak makes at most 1, so that no order of the norm over- or underflows.
    """
    size = torch.abs(x, out=scratch)
    # Magnitudes are in the order of their bits, NaN last: of integers, a CPU finds the greatest
    # several times as fast.
    bits = torch.int64 if x.dtype is torch.float64 else torch.int32
    peak = size.view(bits).amax(1).view(x.dtype)
    powers: tuple[Tensor, ...] = ()
    if norm_type not in (2.0, float("inf")):
        unit = torch.where(peak > 0, peak, 1.0)[:, None]
        powers = (size.div(unit).pow_(norm_type).sum(1),)
    zeros = torch.eq(size, 0, out=size).sum(1)  # into floats: several times as fast as into bools
    return x.sum(1), peak, zeros, *powers


def _gather(found: Sequence[tuple[Tensor, ...]], table: Tensor) -> list[Tensor]:
    """Returns one vector per column, where and as wide as `table` is."""
    home = table.device
    return [
        torch.cat([part.to(home) for part in parts]).to(table.dtype)
        for parts in zip(*found, strict=True)
    ]


def _matrix(same: Sequence[Tensor]) -> Tensor:
    """Returns blocks of one shape as rows (k, n), float32 (float64 where they are); a single block
    of these is not copied.
    """
    stack = same[0] if len(same) == 1 else torch.stack(list(same))
    return stack.reshape(len(same), -1).to(_wide(stack.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def combine(table: Tensor, row: Tensor, count: int, norm_type: float) -> Tensor:
    """Returns the columns (R, C), as wide as the table, from the sums of the member blocks (M, 8).

    Args:
        row: the row of each member (M,).
        count: R.
        norm_type: order of the norm.
    """
    sums = _merge(table, row, count, norm_type)
    n, peak = sums[:, _COUNT].clamp(min=1), sums[:, _PEAK]
    norm = peak
    if norm_type == 2.0:
        norm = sums[:, _SQUARES].sqrt()
    elif norm_type != float("inf"):
        norm = peak * sums[:, _POWERS].pow(1 / norm_type)
    found = {
        "norm": norm,
        "rms": (sums[:, _SQUARES] / n).sqrt(),
        "max_abs": peak,
        "mean": sums[:, _SUM] / n,
        "std": (sums[:, _DEVIATION] / n).sqrt(),
        "zero_fraction": sums[:, _ZEROS] / n,
        "nonfinite": sums[:, _NONFINITE],
    }
    return torch.stack([found[name] for name in COLUMNS], 1)


def _merge(table: Tensor, row: Tensor, count: int, norm_type: float) -> Tensor:
    """Returns what is known of R groups of blocks (R, 8) from what is known of the members (M, 8),
    as if each group were a block; arguments as for `combine`.
    """
    merged = table.new_zeros(count, 8).index_add_(0, row, table)
    mean = merged[:, _SUM] / merged[:, _COUNT].clamp(min=1)
    shift = table[:, _SUM] / table[:, _COUNT].clamp(min=1) - mean[row]
    merged[:, _DEVIATION].index_add_(0, row, table[:, _COUNT] * shift.square())
    peak = table.new_zeros(count).scatter_reduce_(0, row, table[:, _PEAK], "amax")
    merged[:, _PEAK] = peak
    if norm_type not in (2.0, float("inf")):
        part = (table[:, _PEAK] / torch.where(peak > 0, peak, 1.0)[row]).pow(norm_type)
        merged[:, _POWERS] = table.new_zeros(count).index_add_(0, row, part * table[:, _POWERS])
    return merged
