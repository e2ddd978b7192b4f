"""Descriptions of plugins in the user's cache directory, so that a command that only shows plugins
imports none. Whatever is wrong with a file there, it is as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..discovery import Entry
from .description import Described, Description
from .sources import is_same, is_shared_same, list_folders, read_path, stamp_environment

__all__ = ["describe_entries", "read_descriptions"]

_FORM: Final = 3
"""Raised when the same plugin makes another record."""

_UNTIL: Final = 600.0
"""Seconds for which a broken plugin is not asked again: what it lacks may be no file."""

_OLDEST: Final = 30 * 86_400.0
"""Seconds after which a file that nobody has written again is removed."""


def describe_entries(entries: Sequence[Entry], *, anew: bool = False) -> list[Description]:
    """Returns the descriptions of `entries`, in their order: those that are kept, and the others
    from imports in another process, which are kept then.

    Args:
        anew: none of those that are kept is used.
    """
    environment, folders = stamp_environment(), list_folders()
    kept = _read(environment)
    known = {} if anew else kept
    missing = [entry for entry in entries if _name(entry) not in known]
    if missing:
        from .describing import describe_apart  # costs 20 ms, and is seldom needed

        found = dict(zip(map(_name, missing), describe_apart(missing), strict=True))
        if list_folders() == folders:  # else somebody has installed something meanwhile
            _write(stamp_environment(), {**kept, **found})
        known = {**known, **found}
    return [known[_name(entry)].description for entry in entries]


def read_descriptions(entries: Sequence[Entry]) -> list[Description | None]:
    """Returns the descriptions of `entries` that are kept, and None for each of the others."""
    known = _read(stamp_environment()) if entries else {}
    return [known[name].description if (name := _name(e)) in known else None for e in entries]


def _name(entry: Entry) -> str:
    return json.dumps([entry.distribution, entry.version, entry.name, entry.value])


def _find_file() -> Path:
    """Returns the file of this Python with these folders.

    Raises:
        RuntimeError: there is no home directory.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "trainer")
    folder = Path(os.environ.get("TRAINER_CACHE_DIR") or folder)
    which = [sys.version, sys.prefix, str(sys.flags), *read_path()]
    digest = hashlib.blake2b("\0".join(which).encode("utf-8", "replace"), digest_size=8)
    return folder.expanduser() / f"plugins-{digest.hexdigest()}.json"


def _read(environment: list[Any]) -> dict[str, Described]:
    """Returns the descriptions that hold, by name."""
    try:
        with _find_file().open("rb") as stream:
            if hasattr(os, "getuid") and os.fstat(stream.fileno()).st_uid != os.getuid():
                return {}
            digest, _, body = stream.read().partition(b"\n")
        if digest != _digest(body):
            return {}
        data = json.loads(body)
        if [data["form"], data["environment"]] != [_FORM, environment]:
            return {}
        same = [is_shared_same(each) for each in data["shared"]]
        return {
            name: Described(
                Description(**each["description"]),
                {"own": each["own"], "shared": data["shared"][each["shared"]]},
            )
            for name, each in data["plugins"].items()
            if each["until"] > time.time() and same[each["shared"]] and is_same(each["own"])
        }
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def _write(environment: list[Any], plugins: dict[str, Described]) -> None:
    shared: list[Any] = []
    data: dict[str, Any] = {
        "form": _FORM, "environment": environment, "shared": shared, "plugins": {},
    }  # fmt: skip
    for name, each in plugins.items():
        if each.sources is None:
            continue
        if each.sources["shared"] not in shared:
            shared.append(each.sources["shared"])
        data["plugins"][name] = {
            "description": vars(each.description),
            "own": each.sources["own"],
            "shared": shared.index(each.sources["shared"]),
            "until": _find_end(each.description),
        }
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        body = json.dumps(data).encode()
        file = _find_file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(file, _digest(body) + b"\n" + body)
        for other in file.parent.glob("plugins-*"):
            if other.stat().st_mtime < time.time() - _OLDEST:
                other.unlink()


def _replace(file: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(dir=file.parent, prefix="plugins-", suffix=".new")
    new = Path(name)
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(content)
        new.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _find_end(description: Description) -> float:
    is_broken = description.kind == "broken"
    return time.time() + (_UNTIL if is_broken else 10 * _OLDEST)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
