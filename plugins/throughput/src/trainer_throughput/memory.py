"""The most memory that the run has held so far."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int | None:
    """Returns bytes: of a CUDA device what torch has allocated at most, elsewhere the resident
    memory of this process at its largest; None where the system does not tell.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
