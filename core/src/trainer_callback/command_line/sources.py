"""What a plugin's description depends on, and whether that is still the same: its own files, files
of others that are under development, variables of the environment.

What pip installs, changes or removes is seen in the folders of `sys.path`.
"""

# ruff: noqa: PTH100, PTH116, PTH117, PTH118, PTH208
# Some hundred files at each `--help`: `pathlib` takes several times as long.

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ..discovery import Entry

__all__ = [
    "Sources",
    "is_same",
    "is_shared_same",
    "list_folders",
    "read_own",
    "read_path",
    "stamp_environment",
]

_MOST_FILES: Final = 2000
_TICK: Final = 20_000_000
"""Nanoseconds that a file system may be behind the clock."""

_CORE: Final = Path(__file__).parent.parent


_ALL: Final = "*"
"""In place of a name: somebody has looked at all variables."""

_SESSION: Final = re.compile(
    r"(PWD|OLDPWD|SHLVL|_|TERM.*|COLUMNS|LINES|SSH_.*|XDG_SESSION.*|WINDOWID|DBUS_.*|TMUX.*|SLURM.*"
    r"|VSCODE.*|TRAINER_.*|(K|O|GO)MP_.*|(LOCAL_|GROUP_|ROLE_)?RANK|.*WORLD_SIZE|MASTER_.*"
    r"|TORCHELASTIC_.*|PYTEST_.*)"
)
"""Variables that differ from shell to shell and from process to process, or are set by `train-lm`
itself. Who looks at all does not mean these.
"""


class Sources:
    """Notes what is read while plugins are imported, one after the other: what an earlier one has
    loaded, a later one may use. It is for a process that does nothing else.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._opened: set[str] = set()
        self._installed = tuple(_find_installed())
        self._before = frozenset(sys.modules)
        self._began = time.time_ns()
        self._watch_environment()
        sys.addaudithook(self._note_open)

    def read(self, entry: Entry) -> dict[str, Any] | None:
        """Returns the stamps of what the import of `entry` and those before it have read, as plain
        data for `is_same`; None where a file has changed meanwhile, or where there are too many.
        """
        own = read_own(entry.value)
        others = {path: stamp(path) for path in sorted(set(self._find_others()))}
        if own is None or len(others) > _MOST_FILES:
            return None
        limit = self._began - _TICK
        for each in (*own["own"].values(), *others.values()):
            if isinstance(each, list) and max(each[:2]) > limit:
                return None
        names = sorted(self._names - {"COLUMNS", "LINES"})  # which argparse reads for a layout
        if _ALL in names:
            names = [name for name in names if not _SESSION.fullmatch(name)]
        shared = {"files": others, "variables": names, "values": _digest_variables(names)}
        return {"own": own["own"], "shared": shared}

    def _find_others(self) -> Iterator[str]:
        for name in sys.modules.keys() - self._before:
            path = getattr(sys.modules[name], "__file__", None)
            if isinstance(path, str):
                self._opened.add(path)
        for path in self._opened:
            if os.path.isabs(path) and not path.startswith(self._installed):  # torch has others
                yield path

    def _watch_environment(self) -> None:
        kind: Any = type(os.environ)
        read, walk, names = kind.__getitem__, kind.__iter__, self._names

        def note_name(environment: Any, name: str) -> str:
            if not _is_ours(sys._getframe(1)):
                names.add(str(name))
            found: str = read(environment, name)
            return found

        def note_all(environment: Any) -> Iterator[str]:
            if not _is_ours(sys._getframe(1)):
                names.add(_ALL)
            yield from walk(environment)

        kind.__getitem__, kind.__iter__ = note_name, note_all

    def _note_open(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not str(arguments[1]).startswith("r") or "+" in str(arguments[1]):
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)):
            text = os.path.abspath(path)
            if not text.endswith(".pyc") and not text.startswith(("/proc/", "/sys/", "/dev/")):
                self._opened.add(text)


def read_own(value: str) -> dict[str, Any] | None:
    """Returns the stamps of the files of the package that an entry point names, and no more, as
    `Sources.read` does. It is not imported.
    """
    try:
        paths = sorted(_find_own(value))
    except Exception:  # of a finder of somebody's own
        return None
    if len(paths) > _MOST_FILES:
        return None
    shared = {"files": {}, "variables": [], "values": _digest_variables([])}
    return {"own": {path: stamp(path) for path in paths}, "shared": shared}


def is_same(stamps: Mapping[str, Any]) -> bool:
    """Whether files have the stamps that they had."""
    return all(stamp(path) == before for path, before in stamps.items())


def is_shared_same(shared: Mapping[str, Any]) -> bool:
    """Whether what plugins share is the same as it was."""
    return shared["values"] == _digest_variables(shared["variables"]) and is_same(shared["files"])


def stamp(path: str) -> list[int] | str | None:
    """Returns what changes where a file is written anew, or where a folder gets other files; None
    where there is none.
    """
    try:
        if path.endswith(os.sep):
            return _digest(sorted(_list(path)))
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]


def stamp_environment() -> list[Any]:
    """Returns what changes with this Python, this core, this machine, and what is installed."""
    core = [path for folder in (_CORE, *_CORE.iterdir()) for path in sorted(folder.glob("*.py"))]
    return [
        [sys.version, sys.prefix, str(sys.flags), list(sys.warnoptions), _find_host()],
        _digest([str(stamp(str(path))) for path in core]),
        [[path, _read_time(path)] for path in read_path()],
    ]


def list_folders() -> list[Any]:
    """Returns what is in the folders of `sys.path`, without what an import adds."""
    return [stamp(os.path.join(path, "")) for path in read_path()]


def read_path() -> list[str]:
    """Returns the folders of `sys.path`, absolute."""
    return [os.path.abspath(path) for path in sys.path]


def _read_time(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _find_host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def _find_installed() -> Iterator[str]:
    """Yields the folders that pip writes to, which are stamped as a whole."""
    yield from sysconfig.get_paths().values()
    for folder in read_path():
        with contextlib.suppress(OSError):
            if any(name.endswith(".dist-info") for name in os.listdir(folder)):
                yield folder + os.sep
    yield str(_CORE)


def _find_own(value: str) -> Iterator[str]:
    """Yields the files of the package that an entry point names, and its folders, which end with a
    separator; none where there is no such package.
    """
    name = value.partition(":")[0].partition("[")[0].strip().partition(".")[0]
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    if spec.origin is not None and spec.submodule_search_locations is None:
        yield spec.origin
    for folder in spec.submodule_search_locations or ():
        for place, folders, names in os.walk(folder):
            folders[:] = [each for each in folders if each != "__pycache__"]
            yield os.path.join(place, "")
            yield from (os.path.join(place, each) for each in _without_bytecode(names))


def _list(folder: str) -> Iterable[str]:
    return _without_bytecode(os.listdir(folder))


def _without_bytecode(names: Iterable[str]) -> Iterable[str]:
    return [each for each in names if each != "__pycache__" and not each.endswith(".pyc")]


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the guard looks, which keeps all variables to put them back."""
    for _ in range(4):
        if frame is None:
            return False
        if str(frame.f_globals.get("__name__")).startswith("trainer_callback.command_line."):
            return frame.f_code.co_name not in ("note_name", "note_all")
        frame = frame.f_back
    return False


def _digest_variables(names: Iterable[str]) -> str:
    """Returns a digest, for values may be secrets."""
    found = [repr(os.environ.get(name)) for name in names if name != _ALL]
    if _ALL in names:
        mine = {k: v for k, v in os.environ.items() if not _SESSION.fullmatch(k)}
        found.append(repr(sorted(mine.items())))
    return _digest(found)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "replace"), digest_size=16).hexdigest()
