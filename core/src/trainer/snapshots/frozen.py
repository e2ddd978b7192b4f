"""Parameters that are not trained, such as the base of a LoRA: snapshots may keep a digest of them
in their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer_callback import SnapshotError, option_text

from ..config import ConfigError, TrainerConfig
from ..processes.ranks import Ranks
from ..processes.replicas import sum_bits
from ..processes.sharding import gather_weights
from ..step.parameters import name_frozen, tell_frozen

__all__ = ["Frozen", "fill_in"]


class Frozen:
    """The parameters that were frozen when a run began.

    Attributes:
        names: of them; of a tied one the first.
    """

    def __init__(self, model: nn.Module, config: TrainerConfig, ranks: Ranks) -> None:
        """Keeps references."""
        self._model, self._ranks = model, ranks
        self._leaves_out = not config.snapshot_frozen
        self.names: list[str] = []
        self._digests: dict[str, str] = {}

    def look(self) -> None:
        """Looks what is frozen, before any callback."""
        self.names = name_frozen(self._model)

    def start(self) -> None:
        """Remembers what could be left out of snapshots, when callbacks have set the run up.

        Raises:
            ConfigError: nothing is frozen that could be left out, or no process has it whole.
        """
        self._digests = {}
        if not self._leaves_out:
            return
        names = name_frozen(self._model)
        no = option_text("snapshot_frozen", value=False)
        if not names:
            raise ConfigError(f"{no} leaves out frozen parameters, and none is. Leave it out.")
        if self._ranks.is_sharded:
            raise ConfigError(
                f"{no} needs the model whole in each process, and it is sharded. Leave it out."
            )
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        first = {id(parameters[name]) for name in names}
        tied = [name for name, each in parameters.items() if id(each) in first]
        self._start = dict(zip(tied, sum_bits([parameters[name] for name in tied]), strict=True))

    def tell(self, state: Mapping[str, Any]) -> None:
        """Says, at a resume, what else was frozen when the snapshot's run began."""
        tell_frozen(state.get("frozen", self.names), self.names)

    def gather(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Returns the model's weights for a snapshot, whole in the main process, and the digests of
        those that are left out, by name: frozen ones that are what they were when the run began.
        """
        weights = gather_weights(self._model, keep=self._ranks.is_main)
        if not self._leaves_out or not weights:
            return weights, {}
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        frozen = [
            name
            for name in self._start
            if name in weights and name in parameters and not parameters[name].requires_grad
        ]
        sums = sum_bits([parameters[name] for name in frozen])
        same = [name for name, bits in zip(frozen, sums, strict=True) if bits == self._start[name]]
        for name in same:
            if name not in self._digests:
                self._digests[name] = digest_of(weights[name])
        kept = {name: value for name, value in weights.items() if name not in same}
        return kept, {name: self._digests[name] for name in same}


def fill_in(
    state: Mapping[str, Any], digests: Mapping[str, str], own: Mapping[str, Any], source: object
) -> dict[str, Any]:
    """Returns the weights of a snapshot with what it has left out, which is the model's own.

    Args:
        state: the weights that it has.
        digests: of those that it has not, by name.
        own: the model's `state_dict`.
        source: where it is, for messages.

    Raises:
        SnapshotError: the model's own are others.
    """
    whole = dict(state)
    for name, digest in digests.items():
        if name not in own:
            raise SnapshotError(
                f"{source} has left out the frozen {name!r}, which the model has not. Is it "
                "another model?"
            )
        if digest_of(own[name]) != digest:
            raise SnapshotError(
                f"{source} has left out the frozen {name!r}, and the model's is another one. Build "
                "the model from the weights that it was built from when that run began."
            )
        whole[name] = own[name]
    return {name: whole[name] for name in (*own, *whole) if name in whole}


def digest_of(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 of dtype, shape and bytes, as text."""
    whole = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)}".encode())
    found.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
