"""Sums over rows of weights and gradients, on their device.

Where the weights are sharded over several processes (DTensor), each computes with its own part, and
the sums are then added up over those that hold parts of the same weight: all of them have to call.
Letters: R rows of parameters, H histogram bins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Final

from trainer_callback.tensors import local_part, shard_group

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

__all__ = ["BINS", "EDGES", "copy_weights", "count_magnitudes", "forget", "update_ratios"]

EDGES: Final = tuple(range(-24, 9))
"""Of the bins, as log2 of the magnitude. fp16 has nothing below 2**-24."""

BINS: Final = len(EDGES) + 1
"""One below all edges, one above."""

_CPU_PIECE: Final = 1 << 20
"""Elements: there a float32 norm of so many is right to 1e-5; of 38 million it is 0.3 % too low."""

_DEVICE_PIECE: Final = 1 << 24
"""Elements: what is made of so many takes no more than 128 MB."""


def copy_weights(
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
) -> dict[str, list[torch.Tensor]]:
    """Returns the weights, at least in float32, so that a difference of halves is exact."""
    import torch

    weights = {
        row: [local_part(p.detach()) for p in parameters] for row, parameters in trained.items()
    }
    copies = {
        row: [torch.empty_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in some]
        for row, some in weights.items()
    }
    if weights:
        torch._foreach_copy_([*chain(*copies.values())], [*chain(*weights.values())])
    return copies


def update_ratios(
    before: Mapping[str, Sequence[torch.Tensor]],
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
    home: torch.device,
) -> torch.Tensor:
    """Returns norm(new - old) / norm(old) of each row (R,); what is in `before` is used up."""
    import torch

    old_norms = _norms(before, trained, home)
    old = [weight for row in trained for weight in before[row]]
    if old:
        torch._foreach_sub_(old, [local_part(p.detach()) for p in chain(*trained.values())])
    return _norms(before, trained, home) / old_norms


def _norms(
    tensors: Mapping[str, Sequence[torch.Tensor]],
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
    home: torch.device,
) -> torch.Tensor:
    """Returns the 2-norm of each row of `tensors` (R,), each of which is like its parameter."""
    import torch

    pieces: defaultdict[ProcessGroup | None, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for at, (row, parameters) in enumerate(trained.items()):
        for tensor, parameter in zip(tensors[row], parameters, strict=True):
            pieces[shard_group(parameter)] += [(at, piece) for piece in _cut(tensor)]
    wide = torch.float32 if home.type == "mps" else torch.float64
    squares = torch.zeros(len(trained), device=home, dtype=wide)
    for group, found in pieces.items():
        norms = torch._foreach_norm([piece for _, piece in found], 2)
        place = _index(tuple(at for at, _ in found), home)
        own = torch.stack([norm.to(home) for norm in norms]).to(wide).square()
        squares += _add_up(torch.zeros_like(squares).index_add_(0, place, own), group)
    return squares.sqrt()


@lru_cache(maxsize=16)
def _index(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Returns `numbers` as a tensor on `device`, where copying them again would be a wait; kept
    until `forget`.
    """
    import torch

    return torch.tensor(numbers, dtype=torch.int64, device=device)


def forget() -> None:
    """Drops what is kept on devices: a run is over."""
    _index.cache_clear()


def _cut(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    limit = _CPU_PIECE if tensor.device.type == "cpu" else _DEVICE_PIECE
    return [tensor] if tensor.numel() <= limit else tensor.reshape(-1).split(limit)  # type: ignore[no-untyped-call]


def count_magnitudes(trained: Mapping[str, Sequence[torch.nn.Parameter]]) -> torch.Tensor:
    """Returns the share of each row's entries in each bin (R, H).

    Zeros and non-finite entries are in none.
    """
    import torch

    home = next(iter(trained.values()))[0].device
    counts: dict[ProcessGroup | None, torch.Tensor] = {}  # (R, H + 1), the last of all entries
    for at, parameters in enumerate(trained.values()):
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            values = (
                gradient.coalesce().values()
                if gradient.is_sparse
                else local_part(gradient.detach())
            )
            fresh = torch.zeros(len(trained), BINS + 1, dtype=torch.int64, device=home)
            row = counts.setdefault(shard_group(parameter), fresh)[at]
            values = torch.view_as_real(values) if values.is_complex() else values
            row[BINS] += values.numel()
            for piece in _cut(values.detach().reshape(-1)):
                row[:BINS] += _count_bins(piece).to(home)
    total = torch.stack([_add_up(own, group) for group, own in counts.items()]).sum(0)
    return total[:, :BINS] / total[:, BINS:].clamp(min=1)


def _count_bins(values: torch.Tensor) -> torch.Tensor:
    """Returns how many of `values` are in each bin (H,)."""
    import torch

    magnitude = (values if values.dtype is torch.float64 else values.float()).abs()
    floor = torch.frexp(magnitude).exponent.long() - 1
    place = (floor - EDGES[0] + 1).clamp(0, BINS - 1)
    counted = ((magnitude > 0) & magnitude.isfinite()).long()
    return counted.new_zeros(BINS).scatter_add_(0, place, counted)


def _add_up(values: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    """Returns the sum of `values` over the processes of `group`."""
    if group is not None:
        import torch.distributed

        torch.distributed.all_reduce(values, group=group)
    return values
