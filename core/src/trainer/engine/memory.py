"""Running out of memory, said in a line. Knows no loop."""

from __future__ import annotations

import re

import torch

from trainer_callback import RunError, option_text
from trainer_callback.errors import text_of

__all__ = ["OutOfMemoryError", "explain_memory"]


class OutOfMemoryError(RunError, torch.OutOfMemoryError):
    """A device, or the host, has too little memory for the run."""

    def __init__(self, what: str) -> None:
        """Adds the remedies to `what`, a sentence that says where."""
        super().__init__(
            f"{what} Use a smaller {option_text('batch_size')} and as much more of "
            f"{option_text('gradient_accumulation_steps')}, {option_text('precision', 'bf16')}, or "
            "a smaller model or smaller inputs."
        )


def explain_memory(error: BaseException, epoch: int, step: int) -> BaseException:
    """Returns `error`, or an `OutOfMemoryError` that it is the cause of if it means that.

    Args:
        step: updates done, in all epochs.
    """
    text = text_of(error)
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
    if isinstance(error, OutOfMemoryError) or not (
        on_host or isinstance(error, torch.OutOfMemoryError)
    ):
        return error
    wanted = re.search(r"[Tt]r(?:ied|ying|y) to allocate ([\d.]+ ?\w+)", text)
    size = f" when {wanted[1]} more were wanted" if wanted else ""
    device = "the host" if on_host else "the device"
    found = OutOfMemoryError(
        f"{device} is out of memory in epoch {epoch}, update {step + 1}{size}."
    )
    found.__cause__ = error
    return found
