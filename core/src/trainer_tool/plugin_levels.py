"""The levels that were found of plugins, in the user's cache directory. Whatever is wrong with a
file there, it is as if there were none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from trainer.snapshots.durable import replace_file
from trainer_callback.discovery import Entry, find_version

__all__ = ["keep_level", "read_level"]


def keep_level(entry: Entry, level: str) -> None:
    """Keeps the level of this version of a plugin, with the version of the core and the day.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: there is no home directory.
    """
    file = _find_file(entry)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {"level": level, "core": find_version("trainer-core"), "day": date.today().isoformat()}
    replace_file(file, json.dumps({"of": _name(entry), **found}).encode())


def read_level(entry: Entry) -> Mapping[str, str] | None:
    """Returns `level`, `core` (the version of trainer-core) and `day` of the last check of this
    version, or None.
    """
    try:
        found: dict[str, Any] = json.loads(_find_file(entry).read_bytes())
        if found.pop("of") != _name(entry):
            return None
        return {name: str(found[name]) for name in ("level", "core", "day")}
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _name(entry: Entry) -> list[str]:
    return [entry.distribution, entry.version, entry.name, entry.value]


def _find_file(entry: Entry) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "trainer")
    folder = Path(os.environ.get("TRAINER_CACHE_DIR") or folder).expanduser()
    digest = hashlib.blake2b(json.dumps(_name(entry)).encode(), digest_size=8).hexdigest()
    return folder / f"level-{digest}.json"
