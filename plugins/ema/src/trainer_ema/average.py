"""The averages beside a model's own tensors, by name. Knows no trainer; imports torch when used."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

from trainer_callback.tensors import is_sharded, local_part

if TYPE_CHECKING:
    import torch

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving averages of the floating-point weights of a model.

    Tied weights have one average, under their first name. Averages of a type narrower than float32
    are kept in float32: in bfloat16 a share of 0.001 would be rounded away. Of sharded weights each
    process averages its part. An entry that is not finite has no average, and stays what it is:
    -inf in the mask of an attention. Sparse tensors stay what they are, too.

    Attributes:
        averages: name -> average, each on the device of its weight; empty before the first update.
    """

    def __init__(self, model: torch.nn.Module, *, use_buffers: bool) -> None:
        """Averages nothing yet.

        Args:
            use_buffers: average the floating-point buffers too.
        """
        self.averages: dict[str, torch.Tensor] = {}
        self._model = model
        self._use_buffers = use_buffers
        self._shards: list[Any] = [each for each in model.modules() if hasattr(each, "reshard")]
        self._own: dict[str, torch.Tensor] | None = None

    def update(self, decay: float, is_meant: Callable[[str], bool] = lambda name: True) -> None:
        """Moves each average towards its weight; the first time, the average is the weight.

        Args:
            decay: share of the old average in the new one.
            is_meant: whether the weight of a name is averaged this time.
        """
        from torch.optim import swa_utils

        get_update: Any = swa_utils.get_ema_multi_avg_fn  # which has no types
        weights = {name: weight for name, weight in self._find().items() if is_meant(name)}
        for name, weight in weights.items():
            if name not in self.averages or self.averages[name].shape != weight.shape:
                self.averages[name] = _widen(weight).clone()
        averages = [local_part(self.averages[name]) for name in weights]
        wide = [local_part(_widen(weight)) for weight in weights.values()]
        if averages:
            get_update(decay)(averages, wide, 0)

    def forget(self, names: Container[str]) -> None:
        """Drops averages: those of `names` start again."""
        self.averages = {n: average for n, average in self.averages.items() if n not in names}

    def find_own(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Returns the names of the optimizer's parameters, in the model's order."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [name for name, p in self._model.named_parameters() if id(p) in own]

    def load(self, averages: Mapping[str, torch.Tensor]) -> None:
        """Goes on from `averages`; those of weights that the model has not are dropped."""
        self.averages = {
            name: _place_like(weight, averages[name].to(weight.device, _widen(weight).dtype))
            for name, weight in self._find().items()
            if name in averages
        }

    def share_buffers(self) -> None:
        """Gives all processes the main one's averages of buffers; all have to call it. Each has
        averaged the statistics of its own batches, which the main one's replace behind each update.
        """
        import torch

        buffers = {name for name, _ in self._model.named_buffers()}
        for name, average in self.averages.items():
            if name in buffers and not is_sharded(average):
                torch.distributed.broadcast(average, 0)

    def swap_in(self) -> None:
        """Puts the averages into the model, in place, until `swap_out`."""
        if self._own is None:
            self._own = {name: weight.clone() for name, weight in self._find().items()}
            self.copy_in()

    def swap_out(self) -> None:
        """Puts the model's own weights back, bit by bit; nothing happens where they are there."""
        own, self._own = self._own or {}, None
        for name, weight in self._find().items():
            if name in own:
                weight.copy_(own[name])

    def repair_nonfinite(self) -> None:
        """Makes entries that are not finite those of the weights, of which they came: -inf of a
        mask has become NaN (inf - inf). Not done at each update, for it reads every average.
        """
        for name, weight in self._find().items():
            if name in self.averages:
                average, own = local_part(self.averages[name]), local_part(weight)
                average.copy_(own.to(average.dtype).where(~average.isfinite(), average))

    def copy_in(self) -> None:
        """Puts the averages into the model, in place and for good."""
        self.repair_nonfinite()
        for name, weight in self._find().items():
            if name in self.averages:
                weight.copy_(self.averages[name])

    def _find(self) -> dict[str, torch.Tensor]:
        """Looked up each time: a module may have put another tensor in the place of a buffer. A
        forward pass may have left sharded weights whole: only the parts are those of the optimizer.
        """
        for module in self._shards:
            module.reshard()
        found = dict(self._model.named_parameters())
        buffers = dict(self._model.named_buffers()) if self._use_buffers else {}
        return {
            name: tensor.detach()
            for name, tensor in {**found, **buffers}.items()
            if (tensor.is_floating_point() or tensor.is_complex()) and not _is_sparse(tensor)
        }


def _place_like(weight: Any, average: torch.Tensor) -> torch.Tensor:
    """Returns the average; of a weight that is sharded over several processes (a DTensor, as FSDP2
    makes them) this one's part of it.
    """
    if not is_sharded(weight):
        return average
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(average, weight.device_mesh, weight.placements)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor itself, or a float32 copy of a narrower one."""
    import torch

    if tensor.is_complex():
        return tensor.to(torch.promote_types(tensor.dtype, torch.complex64))
    return tensor.float() if tensor.element_size() < 4 else tensor


def _is_sparse(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.layout != torch.strided
