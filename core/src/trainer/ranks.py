"""The processes that train one model together: their number, what they share and agree on.

`torchrun` starts them and names them (RANK, WORLD_SIZE). Everything here is a fixed point that
every process must come to, in the same order; alone, it costs a call and changes nothing. Rank 0 is
the main process: what is written is written by it.

Letters: W processes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from .config import ConfigError
from .points import FixedPoints
from .sharding import check_sharding, share_copies, whole_tensors

__all__ = ["ALONE", "Ranks", "join_ranks", "leave_ranks"]

T = TypeVar("T")

_NEEDED: Final = ("RANK", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """This process among those of its run.

    Every method that takes a `point` is a fixed point: all processes have to come to it. Its name
    is compared first, so that processes at different points do not take each other's data.

    Attributes:
        rank: 0-based number of this process.
        world_size: W.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Makes those of `group`, whose backend works on the CPU, and which nobody else uses; None:
        there is one process.
        """
        self._group = group
        self.rank: int = 0 if group is None else dist.get_rank(group)
        self.world_size: int = 1 if group is None else dist.get_world_size(group)
        self._points = None if group is None else FixedPoints(group)
        self._parallel: nn.parallel.DistributedDataParallel | None = None
        self._sharded: nn.Module | None = None

    @property
    def is_alone(self) -> bool:
        """Whether there is one process, so that there is nothing to agree on."""
        return self._group is None

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
        """Returns the sums of all processes' values (at most 7), in float64; the same bits
        everywhere.
        """
        if self._points is None:
            return [*values]
        return [sum(each) for each in zip(*self._points.meet(point, values), strict=True)]

    def gather(self, value: T, point: str) -> list[T]:
        """Returns every process's value, by rank."""
        if self._group is None:
            return [value]
        self.meet(point)
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, self._group)
        return found

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
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])

    def meet(self, point: str, *, by_callback: bool = False) -> None:
        """Waits for all processes; for `by_callback` see `on_main`."""
        if self._points is not None:
            self._points.meet(point, by_callback=by_callback)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While it is open, an exception that leaves it is told to the others, who would wait."""
        if self._points is None:
            yield
            return
        self._points.start()
        try:
            yield
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
                dist.broadcast(tensor, 0)

    def prepare(
        self, model: nn.Module, given: nn.Module, *, compiled: bool
    ) -> tuple[nn.Module, nn.Module]:
        """Returns what to call in place of `model` in training, and in evaluation. The one for
        training averages the gradients over all processes, which have the main one's weights now. A
        model that `fully_shard` has divided does that itself.

        Args:
            given: `model`, or what somebody's `torch.compile` has made of it.
            compiled: compile it, if nobody has.

        Raises:
            ConfigError: it is divided in a way that cannot be trained here.
        """
        compiles = compiled and given is model
        evaluated = cast(nn.Module, torch.compile(model)) if compiles else given
        if self._group is None:
            return evaluated, evaluated
        device = next(model.parameters()).device
        if check_sharding(model, self.world_size, device):
            self._sharded = model
            share_copies(model)
            self.share(whole_tensors(model))
            return evaluated, evaluated
        self._parallel = nn.parallel.DistributedDataParallel(
            given, device_ids=None if device.type == "cpu" else [device]
        )
        trained = torch.compile(self._parallel) if compiles else self._parallel
        return cast(nn.Module, trained), evaluated

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
        elif self._sharded is not None:  # as DistributedDataParallel does by itself
            self.share([*self._sharded.buffers()])


ALONE: Final = Ranks()
"""A run of one process."""


def join_ranks(device_type: str) -> Ranks:
    """Returns this process's place among those that `torchrun` started, or in the process group
    that is there already; `ALONE` where there is neither.

    Raises:
        ConfigError: WORLD_SIZE promises others, and nothing says how to find them.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        count = os.environ.get("WORLD_SIZE", "1")
        if not count.isdecimal() or int(count) < 2:
            return ALONE
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"this is one of {count} processes (WORLD_SIZE={count}), and {missing[0]} is not "
                "set, which says how to find the others. Start it with torchrun, or unset "
                "WORLD_SIZE."
            )
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    atexit.unregister(leave_ranks)
    atexit.register(leave_ranks)  # also where somebody else, as fully_shard does, has opened it
    if dist.get_world_size() < 2:
        return ALONE
    return Ranks(dist.new_group(backend="gloo"))


def leave_ranks() -> None:
    """Ends the process group, if there is one: the trainers that used it have to be gone.

    Its threads must not outlive the interpreter, whose end would abort the process in them.
    """
    if dist.is_initialized():
        gc.collect()  # a trainer is a circle, and holds the group
        dist.destroy_process_group()
