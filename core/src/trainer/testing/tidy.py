"""Clauses about what a callback leaves behind, when its run is over."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .clauses import Clauses
from .leftovers import read_files, read_running, read_torch_hooks, wait_for
from .runs import build, fail, fresh, train, train_if_it_suits

__all__ = ["TidyClauses"]

_THREADS: Final = "started a thread"
"""What the process is said to have done by whoever leaves one running, which has its own clause."""

_TORCH_CACHE: Final = "torchinductor_"
"""A folder for temporary files that torch itself makes and shares between processes."""


class TidyClauses(Clauses):
    """A callback gives back what it has taken, and writes where it may."""

    def test_it_leaves_nothing_running(self, tmp_path: Path) -> None:
        self._train(tmp_path / "first")  # libraries start what they keep for good
        before = read_running()
        self._train(tmp_path / "second")
        left = wait_for(before)
        if left:
            fail(
                f"it leaves {_list(left)} running behind the run. Tell it to end, and wait for it, "
                "in close(), which is called whichever way a run ends."
            )

    def test_it_leaves_no_hook_of_torch_behind(self, tmp_path: Path) -> None:
        without = self._count_hooks([], tmp_path / "without")
        left = self._count_hooks([fresh(self.make)], tmp_path / "beside") - without
        if left:
            fail(
                f"it leaves hooks behind the run, and another run would call them: {_list(left)}. "
                "Keep what register_..._hook returns, and call remove() of it in close()."
            )

    def test_it_closes_its_files(self, tmp_path: Path) -> None:
        self._train(tmp_path / "first")
        before = read_files()
        self._train(tmp_path / "second")
        left = read_files() - before
        if left:
            fail(
                f"it leaves files open behind the run: {_list(left)}. Close them in close(), which "
                "is called whichever way a run ends."
            )

    def test_it_leaves_the_process_as_it_was(self, tmp_path: Path) -> None:
        expected, changed = [_THREADS], list[str]()
        train(build([], tmp_path / "without", **self._settings()), changes=expected)
        beside = build([fresh(self.make)], tmp_path / "beside", **self._settings())
        train(beside, changes=changed)
        left = [each for each in changed if each not in expected]
        if left:
            fail(
                f"behind the run the process is another one: it {_list(left)}. Put back in close() "
                "what was there before; a logger of your own needs no handler of the root."
            )

    def test_it_writes_to_the_output_directory_only(self, tmp_path: Path) -> None:
        for name, place in (("with", tmp_path / "run"), ("without", None)):
            with _elsewhere(tmp_path / name) as folders:
                settings = self._settings()
                if place is None:
                    settings.update(snapshot_interval=None, snapshot_epochs=False)
                train_if_it_suits(self.make, place, **settings)
            found = [path.name for folder in folders for path in folder.iterdir()]
            left = [name for name in found if not name.startswith(_TORCH_CACHE)]
            if left:
                fail(
                    f"it leaves {_list(left)} in the current directory, or in that of temporary "
                    f"files, in a run {name} output_dir. Write below trainer.output_dir, and "
                    "nothing where that is None."
                )

    def _train(self, place: Path) -> None:
        train(build([fresh(self.make)], place, **self._settings()))

    def _count_hooks(self, callbacks: Sequence[object], place: Path) -> Counter[str]:
        trainer = build(callbacks, place, **self._settings())
        train(trainer)
        return read_torch_hooks(trainer)


@contextmanager
def _elsewhere(place: Path) -> Iterator[list[Path]]:
    """Makes two empty folders the current directory and that of temporary files; yields them."""
    folders = [place / "current", place / "temporary"]
    for folder in folders:
        folder.mkdir(parents=True)
    here, temporary = Path.cwd(), tempfile.tempdir
    os.chdir(folders[0])
    tempfile.tempdir = str(folders[1])
    try:
        yield folders
    finally:
        os.chdir(here)
        tempfile.tempdir = temporary


def _list(names: Iterator[str] | Sequence[str] | set[str] | Counter[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
