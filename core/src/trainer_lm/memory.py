"""Memory of the machine: whether a model fits, and two settings of the C library's heap."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Final

from trainer_callback import UsageError

from .options import ModelOptions

__all__ = ["check_size", "keep_freed_memory", "use_large_pages"]

_HEAP: Final = 2**26
"""Bytes by which the heap grows at least."""


def check_size(vocab_size: int, options: ModelOptions) -> None:
    """Refuses a model whose weights alone are larger than the memory of this machine, before it is
    built: the system would end the process without a word.

    Raises:
        UsageError: it does not fit.
    """
    matrices = 12 * options.n_layer * options.n_embd**2
    parameters = matrices + (vocab_size + options.block_size) * options.n_embd
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory:
        raise UsageError(
            f"the model would have {parameters:,} parameters: {4 * parameters / 1e9:,.0f} GB, and "
            f"this machine has {memory / 1e9:,.0f} GB. Use a smaller --n_embd (it is "
            f"{options.n_embd}), --n_layer ({options.n_layer}), --block_size "
            f"({options.block_size}) or --vocab_size ({vocab_size})."
        )


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
    done = [mallopt(-1, 2**30), mallopt(-2, _HEAP), mallopt(-3, 2**25)]
    return done == [1, 1, 1]


def use_large_pages() -> bool:
    """Asks Linux for pages of 2 MB, not 4 KB, in the next 64 MB of the heap; after
    `keep_freed_memory`.

    What an update of the default GPT allocates fits in there, and is read and written all over: on
    one core of a virtual machine 2 % of its time went to looking up 4 KB pages.

    Returns:
        Whether it was done: only by glibc's heap, on a kernel that has such pages.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_ssize_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(_HEAP // 4)  # makes the heap grow, by `_HEAP` more than this
    start, end = -(-(block or 0) // mmap.PAGESIZE) * mmap.PAGESIZE, libc.sbrk(0)
    done: bool = 0 < start < end and libc.madvise(start, end - start, mmap.MADV_HUGEPAGE) == 0
    libc.free(block)
    return done
