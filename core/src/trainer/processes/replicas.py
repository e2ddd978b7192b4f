"""Whether processes that each train a whole copy of the model still have the same one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from trainer_callback import RunError
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.tensors import is_sharded, local_part

from .ranks import Ranks

__all__ = ["ReplicaError", "check_replicas", "sum_bits"]

logger: logging.Logger = logging.getLogger("trainer")

_MOST_BYTES: Final = 1 << 20
"""Of a buffer that is looked at: larger ones are masks and caches."""
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaError(RunError):
    """The processes of a run have come to train different models."""


def check_replicas(
    model: nn.Module,
    ranks: Ranks,
    callbacks: CallbackManager,
    step: int,
    reported: set[str] | None = None,
) -> None:
    """Compares the parameters of all processes, bit by bit, by one sum over each; all of them have
    to call this. The main process's buffers are sent to all: of small ones that others have
    changed otherwise, but for the statistics of torch's norms, it is said once that those are lost.
    Of a sharded model, processes that hold copies of the same parts are compared.

    Args:
        reported: names of buffers of which that has been said.

    Raises:
        ReplicaError: in all of them, where they differ; it names the first parameter that does.
    """
    if ranks.is_alone:
        return
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    compared = [(name, p) for name, p in model.named_parameters() if name not in ignored]
    buffers = {name: buffer for name, buffer in _find_buffers(model) if name not in ignored}
    both = sum_bits([*(parameter for _, parameter in compared), *buffers.values()])
    sums, counts = both[: len(compared)], both[len(compared) :]
    place = next(_places(compared), ())
    first: dict[tuple[int, ...], tuple[int, list[int]]] = {}
    answers = ranks.gather((place, sums, dict(zip(buffers, counts, strict=True))), "weights")
    if ranks.is_main and reported is not None:
        _warn_lost([found for *_, found in answers], reported)
    for rank, (where, theirs, _) in enumerate(answers):
        main, own = first.setdefault(where, (rank, theirs))
        differing = [name for (name, _), a, b in zip(compared, own, theirs, strict=True) if a != b]
        if differing:
            raise ReplicaError(_explain(differing, (main, rank), callbacks, step))


def _find_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the small buffers that lie where the parameters do, but for the running statistics of
    torch's norms.
    """
    device = next(model.parameters()).device
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            is_plain = buffer.layout == torch.strided and not is_sharded(buffer)
            is_here = buffer.device == device and not buffer.is_quantized
            if is_plain and is_here and buffer.nbytes <= _MOST_BYTES:
                yield f"{path}.{name}".lstrip("."), buffer


def _warn_lost(found: Sequence[Mapping[str, int]], reported: set[str]) -> None:
    for name, main in found[0].items():
        others = [rank for rank, each in enumerate(found) if each.get(name, main) != main]
        if others and name not in reported:
            reported.add(name)
            logger.warning(
                "the buffer %s is not in process %d what it is in the main process: each update "
                "and each validation starts from the main one's, so what others count there is "
                "lost. Add it up over the processes (torch.distributed.all_reduce), if it is of "
                "all batches.",
                *(name, others[0]),
            )


def sum_bits(tensors: Sequence[Tensor]) -> list[int]:
    """Returns, for each tensor, the sum of its bits, read as integers, modulo 2**64; one
    pass over the memory, and one copy from the device.
    """
    sums = []
    for tensor in tensors:
        own = local_part(tensor).detach()
        own = torch.view_as_real(own) if own.is_complex() else own
        bits = own.view(_INTEGERS[own.element_size()])
        if _fills_words(bits):  # several times as fast, for nothing is converted
            bits = bits.view(-1).view(torch.int64)
        sums.append(bits.sum(dtype=torch.int64))
    return torch.stack(sums).tolist() if sums else []


def _fills_words(bits: Tensor) -> bool:
    size = bits.element_size()
    whole = bits.numel() * size % 8 == 0 and bits.storage_offset() * size % 8 == 0
    return bits.is_contiguous() and whole


def _places(named: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[int, ...]]:
    """Yields, for each sharded parameter, which of its parts this process has."""
    for _, tensor in named:
        if is_sharded(tensor):
            where: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
            yield tuple(
                index
                for index, placement in zip(where, tensor.placements, strict=True)
                if placement.is_shard()
            )


def _explain(
    differing: Sequence[str], ranks: tuple[int, int], callbacks: CallbackManager, step: int
) -> str:
    changing = [hook for hook, spec in callbacks.specs.items() if not spec.read_only]
    changers = set().union(*map(callbacks.implementers, changing))
    own = [plugin for plugin in callbacks.plugins if plugin.name in changers]
    names = ", ".join(plugin.label for plugin in own if plugin.distribution != "trainer-core")
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return (
        f"the processes train different models: at update {step}, {differing[0]!r}{more} of "
        f"process {ranks[1]} is not that of process {ranks[0]}. Something changes weights or "
        "gradients by numbers of its own process: random ones, or those of its own batch. "
        + (f"It may be one of these callbacks: {names}. " if names else "")
        + "Let it do the same in all processes (a generator with one seed), and go on from a "
        "snapshot of before."
    )
