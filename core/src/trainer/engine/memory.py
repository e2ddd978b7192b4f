"""Running out of memory, said in a line. Knows no loop."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import torch

from trainer_callback import CallbackError, RunError, option_text
from trainer_callback.errors import text_of

__all__ = ["OutOfMemoryError", "explain_memory", "explaining"]


_SIGN: Final = re.compile(
    r"(?:CUDA|HIP|MPS|XPU)[\w: ]{0,40}out of memory|DefaultCPUAllocator: [\w' ]+|\w+_ALLOC_FAILED"
    r"|Cannot allocate memory"
)
"""What torch and the system say. It stays in the message, for others look for it there: those that
try again with a smaller batch, such as Accelerate's `find_executable_batch_size`.
"""


class OutOfMemoryError(RunError, torch.OutOfMemoryError):
    """A device, or the host, has too little memory for the run.

    Attributes:
        ending: of the message: what torch or the system has said of it, in brackets.
    """

    ending: str = ""


def explain_memory(error: BaseException, where: str, advice: str | None = None) -> BaseException:
    """Returns `error`, or an `OutOfMemoryError` that it is the cause of if it means that.

    Args:
        where: in words, behind "out of memory".
        advice: a sentence; None: what makes an update smaller.
    """
    in_callback = isinstance(error, CallbackError) and error.__cause__ is not None
    source = error.__cause__ or error if in_callback else error
    text = text_of(source)
    sign = _SIGN.search(text) if isinstance(source, (RuntimeError, OSError, MemoryError)) else None
    is_plain = isinstance(source, (MemoryError, torch.OutOfMemoryError))
    if isinstance(source, RunError) or not (sign or is_plain):
        return error
    said = sign[0].strip() if sign else ""
    on_host = isinstance(source, (MemoryError, OSError)) or said.startswith(("Default", "Cannot"))
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
    ending = f" ({said}.)" if said else ""
    found = OutOfMemoryError(f"{device} is out of memory {where}{size}{who}. {advice}{ending}")
    found.ending, found.__cause__ = ending, error
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
