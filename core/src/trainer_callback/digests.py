"""Digests of files: what tells one that is whole from a damaged one, or from another. They are no
proof against somebody who forges both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import xxhash

__all__ = ["DIGESTS", "KIND", "Digest", "digest_file", "seal_json"]

_BLOCK: Final = 1 << 20


class Digest(Protocol):
    """What hashlib calls a hash object."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Goes on with `data`."""

    def hexdigest(self) -> str:
        """Returns the digest of all data so far."""
        ...


KIND: Final = "xxh3_128"
"""The digest of what is written today. It reads 24 GB/s where SHA-256 reads 1.8 and a disk 2."""

DIGESTS: Final[Mapping[str, Callable[[], Digest]]] = {
    "sha256": hashlib.sha256,
    KIND: xxhash.xxh3_128,
}
"""The kinds that manifests of snapshots have, by the name that they have there."""


def digest_file(file: Path, kind: str) -> str:
    """Returns the digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = DIGESTS[kind]()
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def seal_json(content: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a manifest, plain JSON data, in one canonical form, with the digest of
    all the rest in `digest`. A manifest that was read is whole where its own seal is its bytes.
    """
    body = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(body, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**body, "digest": digest}, indent=1, sort_keys=True) + "\n").encode()
