"""One setting of the OpenMP library under torch, which has to be made before torch is imported."""

from __future__ import annotations

import os

__all__ = ["let_waiting_threads_sleep"]


def let_waiting_threads_sleep() -> None:
    """Makes torch's threads sleep while they wait for each other, unless OMP_WAIT_POLICY says
    otherwise.

    By default they spin for milliseconds, at the end of each of the hundreds of operations of an
    update. Where something else wants the processor too, that keeps it from the very thread that is
    waited for: the default GPT on two cores, beside other work, made 400 to 1,800 tokens a second,
    and 11,000 to 15,000 with this. `benchmarks/lm.py` shows that alone it costs nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
