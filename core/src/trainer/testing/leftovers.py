"""What is there before a run and after it: threads, processes, hooks of torch, open files."""

from __future__ import annotations

import gc
import multiprocessing
import stat
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from trainer import Trainer

__all__ = ["read_files", "read_running", "read_torch_hooks", "wait_for"]

_PATIENCE: Final = 5.0
"""Seconds that a thread has to end after the run."""

_MODULE: Final = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_TENSOR: Final = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIMIZER: Final = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
)


def read_running() -> set[str]:
    """Returns the threads and child processes of this process, in words that tell them apart."""
    threads = {f"the thread {each.name!r} ({each.ident})" for each in threading.enumerate()}
    return threads | {f"the process {each.pid}" for each in multiprocessing.active_children()}


def wait_for(before: set[str]) -> set[str]:
    """Returns what runs that is not in `before`, after some patience."""
    end = time.monotonic() + _PATIENCE
    while (left := read_running() - before) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def read_torch_hooks(trainer: Trainer) -> Counter[str]:
    """Returns how many hooks of torch there are, as `forward hook of NAME`."""
    found: Counter[str] = Counter()
    model: Any = trainer.model
    for name, module in model.named_modules():
        for kind in _MODULE:
            found[f"{_name(kind)} of {name or 'the model'}"] += len(getattr(module, kind, ()))
    for name, parameter in model.named_parameters():
        for kind in _TENSOR:
            found[f"{_name(kind)} of {name}"] += len(getattr(parameter, kind, None) or ())
    for kind in _OPTIMIZER:
        hooks = getattr(trainer.optimizer, kind, ())
        found[f"{_name(kind)} of the optimizer"] += len(hooks)
    return found


def read_files() -> Counter[str]:
    """Returns path -> how often this process has it open; nothing where the system does not say."""
    gc.collect()
    found: Counter[str] = Counter()
    folder = Path("/proc/self/fd")
    for name in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if stat.S_ISREG(name.stat().st_mode):
                found[str(name.readlink()).removesuffix(" (deleted)")] += 1
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def _name(kind: str) -> str:
    return kind.strip("_").removesuffix("s").removeprefix("optimizer_").replace("_", " ")
