"""The gradients of one update: their global norm, clipping by it, and statistics of groups of them.

Each number is computed once per update and shared by whoever asks; nothing here copies from a
device to the host. Of sharded parameters each process has a part; norms and statistics are those of
the whole, so that all processes have to ask for them. The room knows parameters and their
gradients; it knows no loop, no optimizer and no callback.

Letters: R groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer_callback import GradientStats

from .reductions import COLUMNS, Blocks, combine, reduce
from .sharding import local_part, shard_group

__all__ = ["Gradients", "drop_gradients"]


class Gradients:
    """The gradients of a model: tied weights count once, a missing gradient is not zero.

    Args:
        model: the module that is trained. Its parameters are looked up once, here.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        first_name = {id(parameter): name for name, parameter in self._parameters.items()}
        self._canonical: dict[str, str] = {
            name: first_name[id(parameter)]
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        groups = {name: shard_group(parameter) for name, parameter in self._parameters.items()}
        self._place = {name: place for place, name in enumerate(self._parameters)}
        self._shard_groups = {name: group for name, group in groups.items() if group is not None}
        self._seen: list[tuple[Tensor, int]] = []
        self._blocks: Blocks | None = None
        self._known_norm: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter's name, tied ones once, in the order of `named_parameters`."""
        return tuple(self._parameters)

    @property
    def known_norm(self) -> Tensor | None:
        """The total norm of this update before clipping, or None where nobody asked for it."""
        return self._known_norm

    def clear(self) -> None:
        """Forgets what was computed for this update, and the gradients with it."""
        self._seen, self._blocks, self._known_norm = [], None, None

    def total_norm(self) -> Tensor:
        """Returns the 2-norm over all gradients, 0-dim, float32 (float64 where one of them is)."""
        self._known_norm = self._look().total_norm()
        return self._known_norm

    def clip(self, max_norm: float) -> tuple[Tensor, Tensor]:
        """Scales all gradients in place so that their total norm is at most `max_norm`.

        The factor is min(1, max_norm / (total_norm + 1e-6)), as in
        `torch.nn.utils.clip_grad_norm_`.

        Returns:
            The total norm before clipping, and whether the factor was below 1: 0-dim, bool, on the
            same device.
        """
        total_norm = self.total_norm()
        factor = max_norm / (total_norm + 1e-6)
        self.multiply(factor.clamp(max=1.0))
        return total_norm, factor < 1.0

    def multiply(self, factor: Tensor | float) -> None:
        """Scales all gradients in place by a number or a 0-dim tensor."""
        by_device: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
        for parameter in self._parameters.values():
            gradient = parameter.grad
            if gradient is not None:
                stored = gradient._values() if gradient.is_sparse else gradient
                if self._shard_groups:
                    stored = local_part(stored)
                by_device[stored.device].append(stored)
        for device, gradients in by_device.items():
            torch._foreach_mul_(
                gradients, factor.to(device) if isinstance(factor, Tensor) else factor
            )
        self._blocks = None

    def stats(
        self, groups: Mapping[str, Sequence[str]] | None = None, norm_type: float = 2.0
    ) -> GradientStats:
        """Returns statistics of the gradients as they are now, on their device, a row per group.

        Non-finite entries are counted in `nonfinite` and never averaged away: they make norm, rms,
        max_abs, mean and std of their row nan or inf. `zero_fraction` and `nonfinite` are finite
        always.

        Args:
            groups: row name -> names of parameters. None: one row per parameter. A parameter may be
                in several groups. A group in which no parameter has a gradient has no row.
            norm_type: order of the norm in column `norm`: p > 0 or inf.

        Raises:
            ValueError: `norm_type` is not above 0, or a group names a parameter that the model does
            not have.
        """
        if not norm_type > 0:
            raise ValueError(f"norm_type must be above 0, or inf, got {norm_type}.")
        blocks = self._look()
        members = self._members(groups, dict.fromkeys(blocks.names))
        wanted = {name for names in members.values() for name in names}
        chosen = {block for block, name in enumerate(blocks.names) if name in wanted}
        table, owners = blocks.everywhere(reduce(blocks, chosen, norm_type), norm_type)
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(owners):
            places[name].append(place)
        pairs = [
            (place, row)
            for row, names in enumerate(members.values())
            for name in names
            for place in places[name]
        ]
        block, row = torch.tensor(pairs, dtype=torch.int64, device=table.device).reshape(-1, 2).T
        self._known_norm = blocks.total_norm()
        return GradientStats(
            rows=tuple(members),
            columns=COLUMNS,
            values=combine(table[block], row, len(members), norm_type).to(blocks.dtype),
            total_norm=self._known_norm.to(blocks.dtype),
            disconnected=tuple(
                name for name, p in self._parameters.items() if p.requires_grad and p.grad is None
            ),
        )

    def _look(self) -> Blocks:
        """Returns this update's blocks: new ones only if a gradient changed since."""
        names, seen = [], []
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is not None:
                names.append(name)
                version = gradient._version
                if self._shard_groups:  # what is done to the part does not show in the whole
                    version += local_part(gradient)._version
                seen.append((gradient, version))
        if self._blocks is None or not _same(self._seen, seen):
            home = next(iter(self._parameters.values())).device
            gradients = [gradient for gradient, _ in seen]
            if self._shard_groups:
                gradients = [local_part(gradient) for gradient in gradients]
            self._blocks = Blocks(zip(names, gradients, strict=True), home, self._shard_groups)
            self._seen = seen
        return self._blocks

    def _members(
        self, groups: Mapping[str, Sequence[str]] | None, present: Mapping[str, object]
    ) -> dict[str, list[str]]:
        """Returns the R rows in the model's order, and of each the parameters, by their first name,
        that are among those `present` with a gradient.
        """
        if groups is None:
            groups = {name: (name,) for name in present}
        members: dict[str, list[str]] = {}
        for group, names in groups.items():
            unknown = [name for name in names if name not in self._canonical]
            if unknown:
                raise ValueError(
                    f"group {group!r} names {unknown[0]!r}, which is no parameter of the model. "
                    f"It has {', '.join(list(self._canonical)[:5])}, ..."
                )
            once = {self._canonical[name] for name in names}
            found = sorted(once & present.keys(), key=self._place.__getitem__)
            if found:
                members[group] = found
        order = sorted(members, key=lambda group: self._place[members[group][0]])
        return {group: members[group] for group in order}


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sets the gradients of the optimizer's parameters to None.

    As `zero_grad` does, but without the record for the profiler that it opens each time: 15 µs. An
    optimizer with a `zero_grad` of its own has that called.
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _same(old: Sequence[tuple[Tensor, int]], new: Sequence[tuple[Tensor, int]]) -> bool:
    return len(old) == len(new) and all(
        a[0] is b[0] and a[1] == b[1] for a, b in zip(old, new, strict=True)
    )
