"""From a mirror to an output directory: the newest whole copy, with its name last."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from trainer_callback import UsageError
from trainer_callback.digests import DIGESTS, digest_file, seal_json

from .store import Copy, DamagedError, Store

__all__ = ["bring_newest", "check_owner", "newest_whole", "retry"]

logger: Final = logging.getLogger("trainer.mirror")

FIRST_PAUSE: Final = 1.0
"""Seconds before the second try; it doubles with each."""
_T = TypeVar("_T")


def retry(call: Callable[[], _T], tries: int = 4) -> _T:
    """Returns what `call` does, which may fail all but the last time; waits 1, 2, ... seconds."""
    for attempt in range(tries - 1):
        with suppress(Exception):
            return call()
        time.sleep(FIRST_PAUSE * 2**attempt)
    return call()


def check_owner(copies: Sequence[Copy], run_id: str, url: str) -> None:
    """Refuses a mirror with copies of another run than `run_id`.

    Raises:
        UsageError: names both.
    """
    for copy in copies:
        if copy.run_id != run_id:
            raise UsageError(
                f"{url} has snapshots of the run {copy.run_id}, and this is run {run_id}. Give "
                "each run a URL of its own, or resume that one in an empty output directory."
            )


def newest_whole(place: Path) -> int:
    """Returns the update of the newest snapshot in the output directory `place` whose manifest is
    whole, and each file as that says; -1 where there is none.
    """
    for path in sorted((place / "snapshots").glob("step-*"), reverse=True):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            content = (path / "manifest.json").read_bytes()
            files = json.loads(content)["files"]
            if seal_json(json.loads(content)) == content and all(
                _is_whole(path / name, told) for name, told in files.items()
            ):
                return int(path.name.removeprefix("step-"))
    return -1


def _is_whole(file: Path, told: Mapping[str, str]) -> bool:
    """Whether `file` has the digest that a manifest tells of it, of whatever kind."""
    (kind,) = told.keys() & DIGESTS.keys()
    return digest_file(file, kind) == told[kind]


def bring_newest(store: Store, copies: Sequence[Copy], place: Path, least: int = 0) -> Copy | None:
    """Puts the newest copy of at least update `least` that is whole into the output directory
    `place`; returns it, or None where there is none.

    Raises:
        UsageError: there are such copies, and all are damaged.
        Exception: whatever the client raises, three times.
    """
    problem: DamagedError | None = None
    coming = place / "snapshots" / ".tmp-mirror"  # which the trainer removes after a kill
    try:
        for copy in copies:
            if copy.step < least:
                break
            shutil.rmtree(coming, ignore_errors=True)
            try:
                retry(partial(store.fetch, copy, coming))
            except DamagedError as error:
                logger.warning("%s. Trying the snapshot before it.", error)
                problem = problem or error
                continue
            _put_in_place(coming, place)
            return copy
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    if problem is not None and least == 0:
        raise UsageError(f"no snapshot there is whole; the newest: {problem}. Start afresh.")
    return None


def _put_in_place(coming: Path, place: Path) -> None:
    """Moves what was fetched into `place`, the snapshot last."""
    for file in sorted(path for path in coming.rglob("*") if path.is_file()):
        target = place / file.relative_to(coming)
        if not target.is_relative_to(place / "snapshots"):
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    for snapshot in (coming / "snapshots").iterdir():
        target = place / "snapshots" / snapshot.name
        if target.exists():  # a damaged one
            target.rename(target.with_name(f".old-{target.name}"))
        snapshot.rename(target)
