"""Running out of memory, said in a line. Knows no loop."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from trainer_callback import CallbackError, RunError, option_text
from trainer_callback.errors import text_of

__all__ = ["OutOfMemoryError", "explain_memory", "explaining"]


class OutOfMemoryError(RunError, torch.OutOfMemoryError):
    """A device, or the host, has too little memory for the run."""


def explain_memory(error: BaseException, where: str, advice: str | None = None) -> BaseException:
    """Returns `error`, or an `OutOfMemoryError` that it is the cause of if it means that.

    Args:
        where: in words, behind "out of memory".
        advice: a sentence; None: what makes an update smaller.
    """
    in_callback = isinstance(error, CallbackError) and error.__cause__ is not None
    source = error.__cause__ or error if in_callback else error
    text = text_of(source)
    on_host = isinstance(source, MemoryError) or "DefaultCPUAllocator" in text
    if isinstance(source, OutOfMemoryError) or not (
        on_host or isinstance(source, torch.OutOfMemoryError)
    ):
        return error
    wanted = re.search(r"[Tt]r(?:ied|ying|y) to allocate ([\d.]+ ?\w+)", text)
    size = f" when {wanted[1]} more were wanted" if wanted else ""
    device = "the host" if on_host else "the device"
    if advice is None:
        advice = (
            f"Use a smaller {option_text('batch_size')} and as much more of "
            f"{option_text('gradient_accumulation_steps')}, {option_text('precision', 'bf16')}, or "
            "a smaller model or smaller inputs."
        )
    who = f": {text_of(error).partition(': ')[0]}" if in_callback else ""
    found = OutOfMemoryError(f"{device} is out of memory {where}{size}{who}. {advice}")
    found.__cause__ = error
    return found


@contextlib.contextmanager
def explaining(where: str, advice: str | None = None) -> Iterator[None]:
    """Raises an `OutOfMemoryError` in place of what means that; see `explain_memory`."""
    try:
        yield
    except Exception as error:
        found = explain_memory(error, where, advice)
        try:
            if found is error:
                raise
            raise found
        finally:
            del found  # whose traceback has this frame
