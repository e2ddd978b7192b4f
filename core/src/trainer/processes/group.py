"""The process group of a run: joined where `torchrun` has started it, and left at the end."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Final

import torch.distributed as dist

from ..config import ConfigError
from .ranks import ALONE, Ranks

__all__ = ["check_processes", "join_ranks", "leave_ranks"]

_NEEDED: Final = ("RANK", "MASTER_ADDR", "MASTER_PORT")


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


def check_processes(ranks: Ranks, driver: str, used: int, advice: str) -> None:
    """Raises a `ConfigError` where `driver` trains in fewer processes than there are: each would
    train a model of its own.

    Args:
        used: the processes that it knows of.
        advice: what makes it know of them.
    """
    if used < ranks.world_size:
        raise ConfigError(
            f"{driver} knows of {used} of {ranks.world_size} processes: the models would not be "
            f"averaged over them. {advice}, or start one process."
        )


def leave_ranks() -> None:
    """Ends the process group, if there is one: the trainers that used it have to be gone.

    Its threads must not outlive the interpreter, whose end would abort the process in them.
    """
    if dist.is_initialized():
        gc.collect()  # DistributedDataParallel is in a circle, and holds the group
        dist.destroy_process_group()
