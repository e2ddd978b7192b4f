"""A callback in two processes that train one model, as `torchrun` would start them. This module is
also what each of them runs.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

from .runs import Outcome, fail, play
from .watch import DiskCopy

if TYPE_CHECKING:
    from .clauses import Clauses

__all__ = ["Report", "train_in_two"]

_PATIENCE: Final = 240.0
"""Seconds for both processes, most of which are their imports."""

_CUT: Final = 3
"""The update whose snapshot is resumed from: inside the second epoch, of two updates each."""


@dataclass(frozen=True)
class Report:
    """What one process has found.

    Attributes:
        skipped: why there is nothing to say, or empty.
        failure: what ended it, or empty.
        difference: the first thing that is another one where the run was killed and resumed.
        written: files that this process has written in the output directory or its own.
        printed: what this process has printed.
    """

    skipped: str = ""
    failure: str = ""
    difference: str = ""
    written: Sequence[str] = ()
    printed: Sequence[str] = ()


def train_in_two(contract: Clauses) -> list[Report]:
    """Returns the reports of both processes, by rank; trained once for all clauses of a contract.
    Skips the test where another process could not import it.
    """
    kind = type(contract)
    try:
        pickled = pickle.dumps(contract)
        file = str(Path(sys.modules[kind.__module__].__file__ or "").resolve())
    except (pickle.PicklingError, AttributeError, KeyError):
        pytest.skip(
            f"another process cannot import {kind.__qualname__}. Define the class at the top of "
            "its module."
        )
    return _start(pickled, kind.__module__, file)


@functools.lru_cache(maxsize=4)
def _start(pickled: bytes, module: str, file: str) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "contract.pickle").write_bytes(pickled)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        children = [_start_one(rank, port, place, module, file) for rank in range(2)]
        end = time.monotonic() + _PATIENCE
        try:
            for child in children:
                child.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass  # the reports say which of them is not done
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [_read_report(place, rank) for rank in range(2)]


def _start_one(
    rank: int, port: str, place: Path, module: str, file: str
) -> subprocess.Popen[bytes]:
    own = place / f"rank-{rank}"
    own.mkdir()
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    words = [sys.executable, "-m", __name__, str(place), module, file]
    with (place / f"said-{rank}").open("wb") as said:
        return subprocess.Popen(words, stdout=said, stderr=said, cwd=own, env=environment)


def _read_report(place: Path, rank: int) -> Report:
    file = place / f"report-{rank}"
    if not file.exists():
        said = (place / f"said-{rank}").read_text(errors="replace")[-2000:]
        return Report(failure=f"process {rank} did not come to its end in time. It says:\n{said}")
    found: dict[str, Any] = json.loads(file.read_text())
    return Report(**found)


def _work(place: Path) -> Report:
    """Trains in this process, whole and then in parts; the other process does the same."""
    rank = int(os.environ["RANK"])
    written = _note_writes(place) if rank else []
    printed = _note_prints() if rank else []
    contract: Clauses = pickle.loads((place / "contract.pickle").read_bytes())
    settings = contract._settings(batches=8, snapshot_interval=_CUT, max_steps=None)
    try:
        whole = play(contract.make, place / "run", also=[DiskCopy(_CUT, place / "cut")], **settings)
        difference = None
        (place / f"read-{rank}").touch()
        if whole.decisions["steps"] > _CUT:
            difference = whole.find_difference(_resume(contract, place, settings), contract.varying)
    except pytest.skip.Exception as skipped:
        return Report(skipped=str(skipped.msg))
    except pytest.fail.Exception as failure:
        return Report(failure=str(failure.msg))
    left = [path.name for path in Path.cwd().iterdir()] if rank else []
    return Report("", "", difference or "", [*written, *left], printed)


def _resume(contract: Clauses, place: Path, settings: dict[str, Any]) -> Outcome:
    """Resumes the copy where the run was, for paths are part of what is compared."""
    if os.environ["RANK"] == "0":
        _wait_for(place / "read-1", "the other process has not come to the end of its run")
        shutil.rmtree(place / "run")
        (place / "cut").rename(place / "run")
        (place / "ready").touch()
    _wait_for(place / "ready", "the main process has left no snapshot to resume from")
    return play(contract.make, place / "run", resume=True, **settings)


def _wait_for(file: Path, otherwise: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not file.exists():
        if time.monotonic() > end:
            fail(otherwise)
        time.sleep(0.01)


def _note_writes(place: Path) -> list[str]:
    """Returns the list of files below the output directory that this process opens to write."""
    written: list[str] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and path.startswith(str(place / "run")):
                written.append(os.path.relpath(path, place / "run"))

    sys.addaudithook(hear)
    return written


def _note_prints() -> list[str]:
    """Returns the list of what this process prints."""
    printed: list[str] = []

    def note(*values: object, **named: Any) -> None:
        printed.append(" ".join(map(str, values)))

    builtins.print = note
    return printed


def _import(name: str, file: str) -> None:
    """Imports the module of the contract under its name, wherever it lies. Folders that are a
    package for pytest alone, as with `--import-mode=importlib`, are made one here.
    """
    *folders, _ = name.split(".")
    for count in range(1, len(folders) + 1):
        package = ".".join(folders[:count])
        try:
            importlib.import_module(package)
        except ImportError:
            made = sys.modules[package] = ModuleType(package)
            made.__path__ = [str(Path(file).parents[len(folders) - count])]
    with contextlib.suppress(ImportError):
        found = importlib.import_module(name)
        if Path(found.__file__ or "").resolve() == Path(file):
            return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def main() -> None:
    """Runs one process and writes its report."""
    faulthandler.dump_traceback_later(_PATIENCE - 5)
    place = Path(sys.argv[1])
    _import(*sys.argv[2:])
    report = _work(place)
    target = place / f"report-{os.environ['RANK']}"
    target.with_suffix(".part").write_text(json.dumps(asdict(report)))
    target.with_suffix(".part").rename(target)


if __name__ == "__main__":
    main()
