"""`.run.json`: which files of an output directory were written by runs of this trainer, and where
they went on from a snapshot. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from trainer_callback import SnapshotError
from trainer_callback.digests import DIGESTS, KIND

from .durable import replace_file
from .manifest import digests_of, read_manifest, seal
from .snapshot import list_snapshots

__all__ = ["METRICS", "RECORD", "RunRecord", "digest_of", "make_run_id"]

RECORD: Final = ".run.json"
METRICS: Final = "metrics.jsonl"
_OF_A_MODEL: Final = ("state.pt", "model.safetensors")


@dataclass
class RunRecord:
    """What runs have written into a directory, apart from what manifests name.

    Attributes:
        files: name -> a digest of each content that a run wrote there, SHA-256 or that of a
            manifest; none for a file that grows.
        had_snapshot: a snapshot was there, so that one that is gone is no snapshot that never was.
        clearing: the run is being removed, and is not to be gone on with.
        resumes: the updates behind which the run went on from a snapshot, in rising order.
        run_id: of the run; empty where an older version wrote the record.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    had_snapshot: bool = False
    clearing: bool = False
    resumes: list[int] = field(default_factory=list)
    run_id: str = ""

    @classmethod
    def read(cls, place: Path) -> RunRecord | None:
        """Returns the record of `place`; of a directory that has none, what the manifests in it
        tell; None where they tell nothing: no run has written there.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = (place / RECORD).read_bytes()
            saved = json.loads(content)
            if seal(saved) == content:
                known = (saved["files"], saved["had_snapshot"], saved["clearing"])
                return cls(*known, [*saved.get("resumes", ())], str(saved.get("run_id", "")))
        return _infer(place)

    @staticmethod
    def is_foreign(place: Path) -> bool:
        """Whether somebody else's file has the name of the record: no run wrote what is in it. An
        empty one is what a power failure leaves.
        """
        try:
            content = (place / RECORD).read_bytes()
            return content != b"" and seal(json.loads(content)) != content
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return True

    def write(self, place: Path) -> None:
        """Writes the record of `place`.

        Raises:
            OSError: it cannot be written.
        """
        replace_file(place / RECORD, seal(asdict(self)))

    def note_resume(self, place: Path, step: int) -> None:
        """Remembers that the run in `place` goes on behind update `step`."""
        self.resumes = [*(each for each in self.resumes if each <= step), step]
        with contextlib.suppress(OSError):  # only who looks at the run would miss it
            self.write(place)

    def owns(self, file: Path) -> bool:
        """Whether a run wrote what is in `file`, or it is empty."""
        known = self.files.get(file.name)
        if known == []:
            return True
        digests = {digest_of(file), digest_of(file, KIND)}
        return not digests.isdisjoint({*(known or ()), digest_of(b"")})


def make_run_id() -> str:
    """Returns a new id: short, and fit for the name of a file and for the ids of trackers."""
    return secrets.token_hex(6)


def digest_of(content: Path | bytes, kind: str = "sha256") -> str:
    """Returns the digest of bytes, or of a file; `` where that cannot be read."""
    try:
        found = content if isinstance(content, bytes) else content.read_bytes()
    except OSError:
        return ""
    digest = DIGESTS[kind]()
    digest.update(found)
    return digest.hexdigest()


def _infer(place: Path) -> RunRecord | None:
    files: dict[str, list[str]] = {}
    for path in (*list_snapshots(place / "snapshots"), place / "final"):
        try:
            named = digests_of(read_manifest(path))
        except SnapshotError:
            continue
        files[METRICS] = []
        for name in {*named} - {*_OF_A_MODEL}:
            files.setdefault(name, []).append(named[name])
    return RunRecord(files, had_snapshot=True) if files else None
