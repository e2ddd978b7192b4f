"""Sums over rows of weights and gradients, on their device.

Where the weights are sharded over several processes (DTensor), each computes with its own part, and
the sums are then added up over those that hold parts of the same weight: all of them have to call.
Letters: R rows of parameters, H histogram bins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from trainer_callback.tensors import local_part, shard_group

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

__all__ = ["BINS", "LOWEST_BIN", "copy_weights", "count_magnitudes", "update_ratios"]

LOWEST_BIN: Final = -24
BINS: Final = 34
"""Of log2 of the magnitude: below -24, one each from -24 to 7, 8 and above.

fp16 has nothing below 2**-24.
"""

_PIECE: Final = 1 << 20
"""Elements: a float32 norm of so many is right to 1e-5; of 38 million it is 0.3 % too low."""


def copy_weights(
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
) -> dict[str, list[torch.Tensor]]:
    """Returns the weights, at least in float32, so that a difference of halves is exact."""
    import torch

    return {
        row: [
            local_part(p.detach()).to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for p in parameters
        ]
        for row, parameters in trained.items()
    }


def update_ratios(
    before: Mapping[str, Sequence[torch.Tensor]],
    trained: Mapping[str, Sequence[torch.nn.Parameter]],
    home: torch.device,
) -> torch.Tensor:
    """Returns norm(new - old) / norm(old) of each row (R,); what is in `before` is used up."""
    old_norms = _norms(before, trained, home)
    for row, parameters in trained.items():
        for old, parameter in zip(before[row], parameters, strict=True):
            old.sub_(local_part(parameter.detach()))
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
        place = torch.tensor([at for at, _ in found], device=home)
        own = torch.stack([norm.to(squares) for norm in norms]).square()
        squares += _add_up(torch.zeros_like(squares).index_add_(0, place, own), group)
    return squares.sqrt()


def _cut(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.numel() <= _PIECE:
        yield tensor
        return
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        yield flat[start : start + _PIECE]


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
    place = (floor - LOWEST_BIN + 1).clamp(0, BINS - 1)
    counted = ((magnitude > 0) & magnitude.isfinite()).long()
    return counted.new_zeros(BINS).scatter_add_(0, place, counted)


def _add_up(values: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    """Returns the sum of `values` over the processes of `group`."""
    if group is not None:
        import torch.distributed

        torch.distributed.all_reduce(values, group=group)
    return values
