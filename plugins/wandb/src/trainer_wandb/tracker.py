"""One run in Weights & Biases: what it has, what is added, how it ended. Lives in a process of its
own.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import LogRecord, serve_tracker

__all__ = ["WandbTracker"]

_COUNT: Final = "events.txt"
"""Beside a file of W&B that is whole: how many events of the run it and earlier ones have."""
_BLOCK: Final = 32768
_CODES: Final[Mapping[str, int]] = {"failed": 1, "interrupted": 130, "terminated": 143}


class WandbTracker:
    """Writes the run of W&B that has this run's id. The step of W&B, which has to rise, is the
    number of the event; the updates are a metric, over which all others are drawn.

    Args:
        settings: the configuration.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        mode: str,
        folder: str,
        *,
        run_id: str,
        run_name: str,
        settings: Mapping[str, object],
    ) -> None:
        self._folder = Path(folder)
        self._is_offline = mode == "offline"
        names = {"project": project, "entity": entity, "id": run_id, "name": run_name}
        self._arguments = {**names, "mode": mode, "config": dict(settings)}
        self._run: Any = None
        self._count = 0
        self._status = ""

    def start(self) -> None:
        """Loads W&B."""
        import wandb  # noqa: F401

    def open(self, known: int) -> int:
        """Starts a run, or goes on with it; returns how many events W&B has."""
        import wandb

        if self._is_offline:
            self._count = self._discard(known)
        quiet = {"console": "off", "silent": True, "save_code": False, "disable_git": True}
        lean = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
        limits = {"init_timeout": 10.0, "finish_timeout": 12.0, "finish_timeout_raises": True}
        self._run = wandb.init(
            **self._arguments,
            dir=str(self._folder.parent),
            resume="allow",
            settings=wandb.Settings(**quiet, **lean, **limits),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not self._is_offline:
            self._count = int(self._run.summary.get("_step", -1)) + 1
        return self._count

    def send(self, records: Sequence[LogRecord]) -> None:
        """Adds a row for each event."""
        for record in records:
            place = {"step": record.step, "epoch": record.epoch, "_timestamp": record.time}
            self._run.log({**record.metrics, **record.texts, **place}, step=record.event)
            self._count = record.event + 1

    def finish(self, status: str) -> None:
        """Notes the end for `close`, since the finished model comes before."""
        self._status = status

    def save_final(self, path: Path) -> None:
        """Adds the files of the finished model to those of the run."""
        self._run.save(f"{path}/*", base_path=str(path.parent), policy="end")

    def close(self) -> None:
        """Ends the run, and W&B's own process. Refuses to call a file whole that is not."""
        import wandb

        is_ended = self._run is not None and self._status
        if is_ended:
            self._run.finish(exit_code=_CODES.get(self._status, 0))
        wandb.teardown()
        if is_ended and self._is_offline:
            place = Path(self._run.dir).parent
            if not any(map(_is_whole, place.glob("*.wandb"))):  # W&B itself only writes a log of it
                raise RuntimeError(f"W&B could not write all of its file; see {place / 'logs'}")
            (place / _COUNT).write_text(str(self._count))

    def _discard(self, known: int) -> int:
        """Removes the files of earlier lives, but for those that were synced; returns how many
        events these have.
        """
        count = 0
        for place in sorted(self._folder.glob(f"offline-run-*-{self._arguments['id']}")):
            if not any(place.glob("*.synced")):
                shutil.rmtree(place)
                continue
            note = place / _COUNT
            count = int(note.read_text() or known + 1) if note.exists() else known + 1
            if count > known:
                raise RuntimeError(
                    f"{place} was synced, and has more than the snapshot that the run resumes "
                    "from; W&B takes nothing back. Resume into another output_dir, for a run of "
                    "another id, or remove the run from W&B and this folder"
                )
        return count


def _is_whole(file: Path) -> bool:
    """Whether a file of W&B has all that was written: it ends with the end of the run.

    It is a log as that of LevelDB, behind 7 bytes: blocks of 32 KiB; in them pieces of records,
    each behind a checksum (4 bytes), its length (2) and whether it is all of a record (1), its
    first (2), a middle (3) or its last piece (4).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    at, record, last = 7, b"", b""
    while at + 7 <= len(content):
        if (left := -at % _BLOCK) and left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        at += 7 + length
        record = (record if kind in (3, 4) else b"") + content[at - length : at]
        last = record if kind in (1, 4) else last
    return at == len(content) and bool(Record.FromString(last).WhichOneof("record_type") == "exit")


if __name__ == "__main__":
    serve_tracker(WandbTracker)
