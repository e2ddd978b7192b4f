"""`manifest.json`: what a snapshot is and holds, and whether every byte of it is still there.
Imports no torch.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trainer_callback import SnapshotError
from trainer_callback.checks import is_count
from trainer_callback.digests import KIND, digest_file, seal_json

__all__ = [
    "FORMAT",
    "MANIFEST",
    "digests_of",
    "own_file_names",
    "read_manifest",
    "seal",
    "to_json_data",
    "verify",
]

FORMAT: Final = 2
"""Version of the directory's format; a newer one is refused, an older one migrated in memory."""

_KINDS: Final[Mapping[int, str]] = {1: "sha256", FORMAT: KIND}
"""Format -> the digest that its manifests have of each file."""

MANIFEST: Final = "manifest.json"

_MOST_BYTES: Final = 1 << 26
"""64 MB. A manifest lists files and options, not layers: kilobytes."""


def to_json_data(value: Any) -> Any:
    """Returns `value` (dicts, lists, tuples and scalars) with strings for what JSON does not know:
    `nan`, `inf` and `-inf`, as `metrics.jsonl` has them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: to_json_data(item) for key, item in value.items()}
    return [to_json_data(item) for item in value] if isinstance(value, (list, tuple)) else value


def seal(content: Mapping[str, Any]) -> bytes:
    """Returns a manifest's bytes, with its own digest; `content` may have what JSON knows not."""
    return seal_json(to_json_data(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of the snapshot `path`, whose own digest is checked; no other file is
    read.

    Raises:
        SnapshotError: missing, damaged, or of a newer format.
    """
    file = path / MANIFEST
    try:
        content = _read(file)
    except OSError as error:
        raise SnapshotError(f"{file}: {error.strerror}. This is no complete snapshot.") from error
    manifest = _parse(content)
    if manifest is None:
        raise SnapshotError(f"{file} is damaged: it is no manifest of a snapshot.")
    sound = seal_json(manifest) == content  # older ones have NaN as Python writes it
    if manifest["format"] > FORMAT:
        doubt = "" if sound else " Or it is damaged: its content does not match its own digest."
        raise SnapshotError(
            f"{path} has format {manifest['format']}, and this trainer reads up to format "
            f"{FORMAT}. Install a newer trainer-core.{doubt}"
        )
    if not sound:
        raise SnapshotError(f"{file} is damaged: its content does not match its own digest.")
    _check_form(manifest, file)
    return manifest


def verify(path: Path) -> dict[str, Any]:
    """Returns the manifest after checking size and digest of every file against it.

    Raises:
        SnapshotError: names the first file that is missing, cut or changed.
    """
    manifest = read_manifest(path)
    kind = _KINDS[manifest["format"]]
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            size = _size(file)
            digest = digest_file(file, kind) if size == entry["size"] else ""
        except OSError as error:
            raise SnapshotError(f"{file}: {error.strerror}.") from error
        except ValueError as error:  # a name that no file can have
            raise SnapshotError(f"{path / MANIFEST} names {name!r}, which is no file.") from error
        if size < 0:
            raise SnapshotError(f"{file} is no file.")
        if size != entry["size"]:
            raise SnapshotError(
                f"{file} has {size} bytes instead of {entry['size']}: it was cut or replaced."
            )
        if digest != entry[kind]:
            raise SnapshotError(f"{file} is damaged: its {kind} is not the one in the manifest.")
    return manifest


def digests_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the digest of each file that a manifest names."""
    kind = _KINDS[manifest["format"]]
    return {name: entry[kind] for name, entry in manifest["files"].items()}


def own_file_names(path: Path) -> set[str] | None:
    """Returns the names of the files that are a snapshot's own, the manifest among them, as far as
    the manifest can be read; None where the directory `path` has none.
    """
    try:
        manifest = _parse(_read(path / MANIFEST))
    except OSError:
        return None
    files = None if manifest is None else manifest.get("files")
    return {MANIFEST, *files} if isinstance(files, dict) else None


def _read(file: Path) -> bytes:
    return file.read_bytes() if 0 <= _size(file) <= _MOST_BYTES else b""


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(manifest, dict) and is_count(manifest.get("format"))
    return manifest if is_one else None


def _check_form(manifest: Mapping[str, Any], file: Path) -> None:
    """Refuses what nobody but a forger would write: a name that leads elsewhere, a missing part."""
    files = manifest.get("files")
    kind = _KINDS.get(manifest["format"])
    sound = kind is not None and isinstance(files, dict)
    for name, entry in files.items() if isinstance(files, dict) else ():
        sound = (
            sound
            and Path(name).name == name != MANIFEST
            and isinstance(entry, dict)
            and is_count(entry.get("size"))
            and isinstance(entry.get(kind), str)
        )
    for key in ("plugins", "options", "versions", "metrics"):
        sound = sound and isinstance(manifest.get(key, {}), dict)
    sound = sound and all(isinstance(each, dict) for each in manifest.get("plugins", {}).values())
    if not sound:
        raise SnapshotError(f"{file} is no manifest that a trainer has written.")


def _size(file: Path) -> int:
    """Returns the bytes of a regular file; -1 for anything else: a pipe would be waited for."""
    found = file.stat()
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
