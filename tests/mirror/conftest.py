"""A store that fails as it is told to, tiny runs, and processes that are killed."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import nn

from trainer import Trainer, TrainerConfig


@dataclass
class Faults:
    """What the store `faulty://` does wrong.

    Attributes:
        refuses: calls that fail before anything is done.
        cuts: files whose writing ends by an error in the middle.
        losses: files that lose their second half, and nobody is told.
        ends: files whose reading ends early, and nobody is told.
        capacity: bytes that may be written in all.
        delay: seconds that the writing of a file takes.
        gate: writing waits until it is set.
        kill_at: the file in the middle of which this process is killed with -9.
        writes: files that were begun.
    """

    refuses: int = 0
    cuts: int = 0
    losses: int = 0
    ends: int = 0
    capacity: float = float("inf")
    delay: float = 0.0
    gate: threading.Event | None = None
    kill_at: int | None = None
    writes: list[str] = field(default_factory=list)

    def strike(self, name: str) -> bool:
        """Whether this call has the fault `name`, of which there is one less then."""
        left = getattr(self, name)
        setattr(self, name, max(left - 1, 0))
        return left > 0


FAULTS = Faults()


class Writing:
    """A file that is written, with a fault in its middle."""

    def __init__(self, file, path):
        self.file, self.path = file, path
        FAULTS.writes.append(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, block):
        time.sleep(FAULTS.delay)
        if FAULTS.gate is not None:
            FAULTS.gate.wait()
        half = bytes(block)[: len(block) // 2]
        kills = FAULTS.kill_at == len(FAULTS.writes)
        if kills or FAULTS.strike("cuts"):
            self.file.write(half)
            self.file.flush()
            if kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")
        FAULTS.capacity -= len(block)
        if FAULTS.capacity < 0:
            raise OSError(errno.ENOSPC, "the bucket is full")
        return self.file.write(half if FAULTS.strike("losses") else block)


class Reading:
    """A file that is read a few bytes at a time, and may end early."""

    def __init__(self, file, path):
        self.file, self.left = file, None
        if path.endswith("state.pt") and FAULTS.strike("ends"):
            self.left = 1000

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, size=-1):
        if self.left == 0:
            return b""
        block = self.file.read(size if size < 0 else min(size, 500))
        if self.left is not None:
            block = block[: self.left]
            self.left -= len(block)
        return block


class FaultyFileSystem(LocalFileSystem):
    """Local files at `faulty:///path`, with the faults of `FAULTS`."""

    protocol = ("faulty",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def open(self, path, mode="rb", **options):
        refuse()
        kind = Reading if mode == "rb" else Writing
        return kind(super().open(path, mode, **options), str(path))

    def ls(self, path, detail=False, **options):
        refuse()
        return super().ls(path, detail=detail, **options)


def refuse():
    if FAULTS.strike("refuses"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")


@pytest.fixture
def faults():
    """The faults, none to begin with."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    for name, value in vars(Faults()).items():
        setattr(FAULTS, name, value)
    return FAULTS


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path):
    """The folder that stands for the store."""
    return tmp_path / "store"


@pytest.fixture
def url(store, faults):
    return f"faulty://{store}"


@pytest.fixture
def quick(monkeypatch):
    """Seconds between two tries are hundredths."""
    monkeypatch.setattr("trainer_mirror.back.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("trainer_mirror.callback.FIRST_PAUSE", 0.01)


def make_trainer(*callbacks, place, pause=0.0, **settings):
    """Returns a run of two epochs of four updates, with a snapshot at each second one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss_fn(model, batch):
        time.sleep(pause)
        return model(batch).square().mean()

    given = {"epochs": 2, "snapshot_interval": 2, "output_dir": place, "keep_snapshots": 2}
    return Trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=0.1),
        torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2, shuffle=True),
        [torch.ones(2, 4)],
        loss_fn=loss_fn,
        config=TrainerConfig(**{**given, "device": "cpu", "log_interval": 1, **settings}),
        callbacks=callbacks,
        discover=False,
        progress=False,
    )


@pytest.fixture
def make():
    return make_trainer


@pytest.fixture
def copies():
    """Returns the updates of the whole copies in a store, the oldest first."""

    def read(place: Path) -> list[int]:
        return sorted(int(path.name[5:13]) for path in place.glob("step-*.json"))

    return read
