"""`trainer mirror pull URL DIRECTORY`: the newest snapshot of a mirror, on this disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainer_callback import UsageError
from trainer_callback.errors import RunError

from .back import bring_newest, retry
from .store import Store

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Raises:
        UsageError: the directory is not empty, or there is nothing to bring.
        RunError: the store cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="trainer mirror", description="Brings the newest snapshot of a mirror to this disk."
    )
    parser.add_argument("what", choices=["pull"], metavar="pull")
    parser.add_argument("url", help="of the mirror, as --mirror_url has it")
    parser.add_argument("directory", type=Path, help="a new or empty one, for an output directory")
    options = parser.parse_args(words)
    url, place = options.url, options.directory
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{str(place)!r} is not empty. Name a new directory.")
    store = Store(url)
    try:
        brought = bring_newest(store, retry(store.copies), place)
    except UsageError:
        raise
    except Exception as error:
        raise RunError(f"{url} cannot be read: {type(error).__name__}: {error}.") from error
    if brought is None:
        raise UsageError(f"{url} has no snapshot. Name the URL that --mirror_url had.")
    print(f"{place} has the snapshot of update {brought.step}, of the run {brought.run_id}.")
    print(f"To go on: the command of the run with --output_dir {place} --resume.")
    return 0
