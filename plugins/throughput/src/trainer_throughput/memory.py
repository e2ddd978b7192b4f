"""The most memory that was held since the run began."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["forget_peak", "peak_memory"]


def forget_peak(device: torch.device) -> None:
    """Makes `peak_memory` count from here on, where the system can: what the process held before is
    not the run's.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux alone has the file, but not in every sandbox
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak


def peak_memory(device: torch.device) -> int | None:
    """Returns bytes: of a CUDA device what torch has allocated at most, elsewhere the resident
    memory of this process at its largest, since `forget_peak`; None where the system does not tell.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":  # getrusage knows the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return None if found is None else int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
