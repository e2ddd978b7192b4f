"""Whether processes that each train a whole copy of the model still have the same one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from trainer_callback import RunError
from trainer_callback.manager import CallbackManager

from .ranks import Ranks
from .sharding import is_sharded, local_part

__all__ = ["ReplicaError", "check_replicas"]

_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHANGING: Final = (
    *("on_epoch_start", "on_batch_start", "on_forward_end", "on_backward_end"),
    *("on_gradients_clipped", "on_step_end", "on_batch_end", "on_log", "on_validation_start"),
    *("on_validation_end", "on_epoch_end", "should_stop_training", "on_train_start"),
)
"""Hooks in which a callback may have changed weights or gradients."""


class ReplicaError(RunError):
    """The processes of a run have come to train different models."""


def check_replicas(model: nn.Module, ranks: Ranks, callbacks: CallbackManager, step: int) -> None:
    """Compares the parameters of all processes, bit by bit, by one sum over each; all of them have
    to call this. Buffers are not compared: the main process's are sent to all before each forward
    pass. Of a sharded model, processes that hold copies of the same parts are compared.

    Raises:
        ReplicaError: in all of them, where they differ; it names the first parameter that does.
    """
    if ranks.is_alone:
        return
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    compared = [(name, p) for name, p in model.named_parameters() if name not in ignored]
    sums = _sum_bits([parameter for _, parameter in compared])
    place = next(_places(compared), ())
    first: dict[tuple[int, ...], tuple[int, list[int]]] = {}
    for rank, (where, theirs) in enumerate(ranks.gather((place, sums), "weights")):
        main, own = first.setdefault(where, (rank, theirs))
        differing = [name for (name, _), a, b in zip(compared, own, theirs, strict=True) if a != b]
        if differing:
            raise ReplicaError(_explain(differing, (main, rank), callbacks, step))


def _sum_bits(tensors: Sequence[Tensor]) -> list[int]:
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
    hooks = {name: hook for hook in _CHANGING for name in callbacks.implementers(hook)}
    own = [plugin for plugin in callbacks.plugins if plugin.name in hooks]
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
