"""The processes that train one model together: their number, what they share and agree on.

`torchrun` starts them and names them (RANK, WORLD_SIZE). Everything here is a fixed point that
every process must come to, in the same order; alone, it costs a call and changes nothing. Rank 0 is
the main process: what is written is written by it.

Letters: W processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from trainer_callback import RunError

from .points import MOST_VALUES, FixedPointError, FixedPoints
from .sharding import check_sharding, share_copies, whole_tensors

__all__ = ["ALONE", "Ranks"]

T = TypeVar("T")

Compiler: TypeAlias = Callable[[nn.Module], nn.Module]


class Ranks:
    """This process among those of its run.

    Every method that takes a `point` is a fixed point: all processes have to come to it. Its name
    is compared first, so that processes at different points do not take each other's data.

    Attributes:
        rank: 0-based number of this process.
        world_size: W.
        is_in_update: gradients are made whose means the processes make together: they wait for
            each other where nobody hears of a fixed point.
        is_alone: whether there is one process, so that there is nothing to agree on.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Makes those of `group`, whose backend works on the CPU, and which nobody else uses; None:
        there is one process.
        """
        self._group = group
        self.is_alone: bool = group is None
        self.rank: int = 0 if group is None else dist.get_rank(group)
        self.world_size: int = 1 if group is None else dist.get_world_size(group)
        self._points = None if group is None else FixedPoints(group)
        self._parallel: nn.parallel.DistributedDataParallel | None = None
        self._sharded: nn.Module | None = None
        self._plain: nn.Module | None = None
        self._is_called = self._notes_calls = False
        self.is_in_update: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each has a part of the model, so that a forward pass takes all of them."""
        return self._sharded is not None

    def highest(self, value: int, point: str) -> int:
        """Returns the highest of all processes' values."""
        if self._points is None:
            return value
        return int(max(values[0] for values in self._points.meet(point, [float(value)])))

    def total(self, values: Sequence[float], point: str) -> list[float]:
        """Returns the sums of all processes' values, of which each has as many, in float64; the
        same bits everywhere. Up to `MOST_VALUES` of them take one exchange.
        """
        if self._points is None:
            return [*values]
        few = len(values) <= MOST_VALUES
        everywhere = self._points.meet(point, values) if few else self.gather([*values], point)
        return [sum(each) for each in zip(*everywhere, strict=True)]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all processes' tensors, on their device, which nothing waits for."""
        if self._group is None:
            return tensor
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, value: T, point: str) -> list[T]:
        """Returns every process's value, by rank."""
        if self._group is None:
            return [value]
        self.meet(point)
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, self._group)
        return found

    def gather_on_main(self, value: T, point: str) -> list[T]:
        """Returns every process's value, by rank, in the main one; nothing in the others."""
        if self._group is None:
            return [value]
        self.meet(point)
        found: list[Any] | None = [None] * self.world_size if self.is_main else None
        main = dist.get_global_rank(self._group, 0)
        dist.gather_object(value, found, main, self._group)
        return found or []

    def on_main(self, call: Callable[[], T], point: str, *, by_callback: bool = False) -> T:
        """Calls in the main process; returns, or raises, in all of them what that did.

        Args:
            by_callback: a callback has asked for it. Where others do not come because it has failed
                there, it raises here; the trainer's own points wait for it then.
        """
        if self._group is None:
            return call()
        self.meet(point, by_callback=by_callback)
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = call()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, dist.get_global_rank(self._group, 0), self._group)
        try:
            if outcome[1] is not None:
                raise outcome[1]
            return cast(T, outcome[0])
        finally:
            del outcome  # an exception's traceback has this frame

    def meet(self, point: str, *, by_callback: bool = False) -> None:
        """Waits for all processes; for `by_callback` see `on_main`.

        Raises:
            FixedPointError: they do not come; or a callback has called inside an update, where
                one that does not come could not be told of.
        """
        if self._points is None:
            return
        if by_callback and self.is_in_update:
            raise FixedPointError(
                f"{point} is called inside an update, where all processes wait for each other's "
                "gradients, or behind a batch of a validation, of which each has as many as it "
                "has: one that does not call it would wait for ever. Call it behind the update, in "
                "on_batch_end of its last batch, or at the end of a validation or an epoch."
            )
        self._points.meet(point, by_callback=by_callback)

    def leave(self, what: str) -> None:
        """Notes that this process leaves its loop by `what`, which the others have to do, too.

        Raises:
            FixedPointError: they do not, within a few seconds.
        """
        if self._points is not None:
            self._points.leave(what)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While it is open, an exception that leaves it is told to the others, who would wait."""
        if self._points is None:
            yield
            return
        self._points.start()
        self.is_in_update = False
        try:
            yield
            self.watch(lambda: False)
        except BaseException as error:
            self._points.fail(error)
            raise

    def watch(self, is_ahead: Callable[[], bool]) -> None:
        """Takes what says whether this process has switched off a callback that others have not."""
        if self._points is not None:
            self._points.is_ahead = is_ahead

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copies the main process's `tensors` into those of all others."""
        if self._group is not None:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def prepare(
        self, model: nn.Module, given: Any, *, compiler: Compiler | None, several: bool
    ) -> tuple[Any, Any]:
        """Returns what to call in place of `given` in training, and in evaluation; of a mapping of
        models, a mapping. All processes have the main one's weights then. What is called in
        training averages the gradients over all of them, unless there are several models or
        optimizers: `average` does it then. A model that `fully_shard` has divided does that itself.

        Args:
            model: the plain model, with all that is trained.
            given: `model`, or what somebody's `torch.compile` has made of it; or several of them by
                their names.
            compiler: compiles it, if nobody has; None: nothing is compiled.
            several: several optimizers train it.

        Raises:
            ConfigError: it is divided in a way that cannot be trained here.
        """
        own = compiler if given is model else None
        if isinstance(given, Mapping):
            evaluated: Any = {
                name: _compile(each, compiler if model[name] is each else None)  # type: ignore[index]
                for name, each in given.items()
            }
        else:
            evaluated = _compile(given, own)
        several = several or isinstance(given, Mapping)
        if self._group is None or self._share_start(model, several=several):
            return evaluated, evaluated
        device = next(model.parameters()).device
        self._parallel = nn.parallel.DistributedDataParallel(
            given, device_ids=None if device.type == "cpu" else [device]
        )
        if own is None:  # which would compile the note too
            self._parallel.register_forward_pre_hook(self._note_call)
            self._notes_calls = True
        return _compile(self._parallel, own), evaluated

    def follow_structure(self, model: nn.Module) -> None:
        """Does for a model that has been changed since `prepare` what that does."""
        if self._parallel is not None:
            given, devices = self._parallel.module, self._parallel.device_ids
            self._parallel.__init__(given, device_ids=devices)  # type: ignore[misc]
            if self._notes_calls:
                self._parallel.register_forward_pre_hook(self._note_call)
        elif self._group is not None:
            self._share_start(model, several=self._plain is not None)

    def _share_start(self, model: nn.Module, *, several: bool) -> bool:
        """Gives all processes the main one's weights; returns whether the model is trained without
        DistributedDataParallel, which else does it.
        """
        if check_sharding(model, self.world_size, next(model.parameters()).device):
            self._sharded = model
            share_copies(model)
            self.share(whole_tensors(model))
        elif several:
            self._plain = model
            self.share([*model.parameters(), *model.buffers()])
        return self.is_sharded or several

    def _note_call(self, *_: object) -> None:
        self._is_called = True

    def _check_called(self) -> None:
        """Looks whether the forward passes of this update went through what averages gradients.

        Raises:
            RunError: none did.
        """
        if self._notes_calls and not self._is_called:
            raise RunError(
                "no forward pass of this update went through run.module, so its gradients are not "
                "averaged over the processes, which would train different models. Call run.module "
                "in place of the model."
            )
        self._is_called = False

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Checks that the gradients of an update are means over all processes; of several models or
        optimizers it averages those of `parameters`. One that some processes have only counts as 0
        in the others.

        Raises:
            RunError: what averages them was gone round.
        """
        if self._group is None:
            return
        self._check_called()
        self.is_in_update = self._plain is not None  # whose other optimizers come yet
        if self._plain is None or not parameters:
            return
        device = parameters[0].device
        present = torch.tensor([p.grad is not None for p in parameters], device=device)
        counts = present.to(torch.float32)
        dist.all_reduce(counts)
        for parameter, count in zip(parameters, counts.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def start_forward(self, *, last: bool) -> None:
        """Prepares a forward pass in training.

        Args:
            last: it is that of an update's last micro-batch. Whole models average their gradients
                then only; parts do each time, or else each process would hold whole gradients.
        """
        if self._points is None:
            return
        self._points.announce()
        if self._parallel is not None:  # what its `no_sync` sets, without a context per batch
            self._parallel.require_backward_grad_sync = last
            return
        for model in (self._sharded, self._plain):
            if model is not None:  # as DistributedDataParallel does by itself
                self.share([*model.buffers()])


def _compile(module: nn.Module, compiler: Compiler | None) -> nn.Module:
    return module if compiler is None else compiler(module)


ALONE: Final = Ranks()
"""A run of one process."""
