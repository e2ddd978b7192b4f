"""The gradients of one update: their global norm, clipping by it, a check for NaN and infinities,
and statistics of groups of them.

There is one list of what is trained: the parameters of the model or, where it has several
optimizers, those of one. Gradients of all of them are measured, clipped, checked and dropped; the
optimizer has no others. Nothing is remembered of gradients from one call to the next, for whoever
holds one may change it unseen.

Nothing here copies from a device to the host. Of sharded parameters each process has a part; norms
and statistics are those of the whole, so that all processes have to ask for them. The room knows
parameters and their gradients; it knows no loop and no callback.

Letters: R groups.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from trainer_callback import GradientStats
from trainer_callback.tensors import is_sharded, local_part, shard_group

from ..config import ConfigError
from .gradient_stats import COLUMNS, Norms, make_index, measure, total_norm
from .parts import check_optimized, warn_left_out

__all__ = ["Gradients"]

_FEW: Final = 1 << 16
"""Elements: so many gradients on a CPU are checked in one call, which costs 3 µs and writes each of
them back; more are read once, by their norm."""

_CHECKED: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Gradients:
    """The gradients of a model: tied weights count once, a missing gradient is not zero.

    Args:
        model: the module that is trained.
        optimizer: its optimizer, which may have fewer parameters than the model. None: nobody's.
        fixed: which parameters require a gradient cannot change from here on, for several processes
            have agreed on those whose gradients they average.
        only_optimized: take the optimizer's parameters for all there are. Those of the model that
            it has not are somebody else's: nothing here reads, changes or drops their gradients.

    Attributes:
        outside: the parameters that are trained with the optimizer's, and are not in it.
        norms: of the gradients of this update, as far as somebody has asked for their total.

    Raises:
        ConfigError: the optimizer has a parameter that the model has not.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        fixed: bool = False,
        only_optimized: bool = False,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._only_optimized = only_optimized
        self._agreed: dict[str, bool] | None = None
        self._index = make_index()
        self._found, self._one = torch.zeros(()), torch.ones(())
        self.norms: Norms = ()
        self._are_few = True
        self._look_up()
        self._told = {*self._left_out()}  # by the look at the parts of the run
        self._fixed = fixed
        self.agree()

    @property
    def own(self) -> list[nn.Parameter]:
        """The optimizer's parameters that require a gradient."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    @property
    def are_sharded(self) -> bool:
        """Whether each process has a part of some of them only."""
        return bool(self._shard_groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of what is trained, tied ones once, in the order of `named_parameters`."""
        return tuple(self._parameters)

    def agree(self) -> None:
        """Takes the parameters as they are now, in all processes, for those that are trained."""
        self._look_up()
        if self._fixed:
            self._agreed = {name: p.requires_grad for name, p in self._model_parameters.items()}

    def start(self) -> None:
        """Looks the parameters up and drops what gradients there are: they belong to no update."""
        if self._agreed is None:  # else they are the same, and FSDP2 may have others in the model
            self._look_up()
            self._tell_left_out()
        self.drop()

    def follow(self) -> None:
        """Looks the parameters up again if others have come to the optimizer, or have left it.

        Raises:
            ConfigError: it has one now that the model has not, or one whose gradient no other
                process knows of.
        """
        if self._read_optimizer() != self._optimized:
            self._look_up() if self._agreed is None else self._compare()
            self._tell_left_out()
        if self._agreed is not None:
            self._check_agreed(self._agreed)

    def drop(self) -> None:
        """Sets all gradients to None.

        As `Optimizer.zero_grad` does, but without the record for the profiler that it opens each
        time: 15 µs.
        """
        for parameter in self._list:
            parameter.grad = None

    def finish(self) -> None:
        """Drops the gradients of an update; an optimizer with a `zero_grad` of its own has that
        called.
        """
        if self._zero_grad is not None:
            self._zero_grad(set_to_none=True)
        for parameter in self._list:  # as `drop` does, a call less
            parameter.grad = None
        self.norms = ()

    def check(
        self, verdict: Tensor | float | None = None, *, on_device: bool = False
    ) -> Tensor | float:
        """Returns a number that is finite where `verdict` and every gradient are: 0-dim, on their
        device. Of sharded ones it tells of this process's parts.

        Args:
            on_device: nothing is read on the host, also of a few gradients on a CPU.
        """
        gradients = [grad for p in self._list if (grad := p.grad) is not None]
        if not gradients:
            return 0.0 if verdict is None else verdict
        if self._are_few and not on_device:
            try:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
            except NotImplementedError:  # a sparse gradient
                self._are_few = False
                return self.check(verdict)
            found: Tensor | float = 0.0
            if self._found.item():
                found = math.nan
                self._found.zero_()
        else:
            found, self.norms = total_norm(self._present(), {}, self._home)
        return found if verdict is None else found + verdict

    def find_bad(self, before: Norms | None = None) -> str | None:
        """Returns the first parameter whose gradient is not finite, or was not before clipping,
        which spoils the others; or None. Reads from the device.

        Args:
            before: the norms of an earlier update, whose gradients are gone.
        """
        bad = [
            name
            for names, norms in (self.norms if before is None else before)
            for name, norm in zip(names, norms.tolist(), strict=True)
            if not math.isfinite(norm)
        ]
        if bad or before is not None:
            return min(bad, key=[*self._parameters].index, default=None)
        for name, gradient in self._present():
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            if not bool(values.isfinite().all()):
                return name
        return None

    def total_norm(self) -> Tensor:
        """Returns the 2-norm over all gradients, 0-dim, float32 (float64 where one of them is)."""
        total, self.norms = total_norm(self._present(), self._shard_groups, self._home)
        return total

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
        for _, gradient in self._present():
            stored = gradient._values() if gradient.is_sparse else gradient
            by_device[stored.device].append(stored)
        for device, gradients in by_device.items():
            torch._foreach_mul_(
                gradients, factor.to(device) if isinstance(factor, Tensor) else factor
            )

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
        present, where = self._present(), (self._shard_groups, self._home)
        rows = self._members(groups, dict(present))
        values, total = measure(present, *where, rows, norm_type, index=self._index)
        return GradientStats(
            rows=tuple(rows),
            columns=COLUMNS,
            values=values,
            total_norm=total,
            disconnected=tuple(
                name for name, p in self._parameters.items() if p.requires_grad and p.grad is None
            ),
        )

    def _present(self) -> list[tuple[str, Tensor]]:
        """Returns the gradients that there are; of sharded ones, the part of this process."""
        found = [
            (name, grad) for name, p in self._parameters.items() if (grad := p.grad) is not None
        ]
        if self._shard_groups:
            found = [(name, local_part(gradient)) for name, gradient in found]
        return found

    def _look_up(self) -> None:
        """Lists the parameters of the model, and compares the optimizer with them."""
        self._model_parameters = dict(self._model.named_parameters())
        first_name = {id(parameter): name for name, parameter in self._model_parameters.items()}
        self._canonical: dict[str, str] = {
            name: first_name[id(parameter)]
            for name, parameter in self._model.named_parameters(remove_duplicate=False)
        }
        self._place = {name: place for place, name in enumerate(self._model_parameters)}
        self._compare()

    def _compare(self) -> None:
        """Compares the optimizer with the parameters of the model, and lists what is trained."""
        everything = self._model_parameters
        self._zero_grad = None
        if self._optimizer is not None:
            check_optimized([*everything.values()], self._optimizer)
            own = self._optimizer.zero_grad
            if getattr(own, "__func__", None) is not torch.optim.Optimizer.zero_grad:
                self._zero_grad = own
        self._optimized = self._read_optimizer()
        known = {*self._optimized}
        self._parameters: dict[str, nn.Parameter] = {
            name: p for name, p in everything.items() if id(p) in known or not self._only_optimized
        }
        self._list = list(self._parameters.values())
        self.outside: list[nn.Parameter] = [p for p in self._list if id(p) not in known]
        groups = {name: shard_group(parameter) for name, parameter in self._parameters.items()}
        self._shard_groups = {name: group for name, group in groups.items() if group is not None}
        self._home = self._list[0].device if self._list else torch.device("cpu")
        self._are_few = sum(p.numel() for p in self._list) <= _FEW and all(
            p.is_cpu and p.dtype in _CHECKED and not is_sharded(p) for p in self._list
        )

    def _left_out(self) -> list[str]:
        """Returns the parameters that require a gradient, and are not in the optimizer."""
        known = {*self._optimized}
        return [n for n, p in self._parameters.items() if p.requires_grad and id(p) not in known]

    def _tell_left_out(self) -> None:
        """Says once of each parameter that the optimizer has not, or no longer, that it is so."""
        left_out = [] if self._optimizer is None else self._left_out()
        if not self._told.issuperset(left_out):
            self._told.update(left_out)
            warn_left_out(left_out, sum(p.requires_grad for p in self._list))

    def _read_optimizer(self) -> list[int]:
        """Returns the parameters of the optimizer by identity: those of the model, which live."""
        if self._optimizer is None:
            return []
        found: list[int] = []
        for group in self._optimizer.param_groups:
            found += map(id, group["params"])
        return found

    def _check_agreed(self, agreed: Mapping[str, bool]) -> None:
        """Refuses what would be averaged over processes in part, or not at all."""
        for name, parameter in self._parameters.items():
            if parameter.requires_grad != (before := agreed[name]):
                now, then = ("frozen", "trained") if before else ("trained", "frozen")
                raise ConfigError(
                    f"{name} is {now} and was {then} when the run was built: several processes "
                    "average the gradients that they agreed on then. Freeze and unfreeze before "
                    "Trainer(...) or Run(...), or train in one process."
                )

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
