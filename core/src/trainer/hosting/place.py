"""The folder in which the plugins of a hosted run write, held while the run lasts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ..processes.ranks import Ranks
from ..snapshots.run_record import METRICS, make_run_id
from ..snapshots.rundir import RunDirectory

__all__ = ["hold_folder"]

logger: logging.Logger = logging.getLogger("trainer")


@contextlib.contextmanager
def hold_folder(place: Path | None, ranks: Ranks, *, resumes: bool) -> Iterator[str]:
    """Holds `place` in the main process while it is open; yields the id of the run.

    What an earlier run has left there stays: a run that does not resume moves it aside first, for
    hosts start again in a directory that they have used.

    Raises:
        ConfigError: it cannot be written, or another run uses it.
    """
    with contextlib.ExitStack() as held:

        def claim() -> str:
            if place is None:
                return make_run_id()
            if not resumes:
                _move_aside(place)
            directory = held.enter_context(RunDirectory(place))
            goes_on = resumes and directory.is_known
            directory.claim({}, resumes=goes_on, may_restart=True, overwrite=False)
            return directory.record.run_id

        yield ranks.on_main(claim, "the folder of the plugins")


def _move_aside(place: Path) -> None:
    """Renames the folder of an earlier run."""
    if not (place / METRICS).exists():
        return
    with RunDirectory(place):  # refuses where it is in use
        pass
    number = 1
    while (other := place.with_name(f"{place.name}-{number}")).exists():
        number += 1
    place.rename(other)
    logger.info("what plugins of an earlier run wrote to %s is in %s now.", place, other)
