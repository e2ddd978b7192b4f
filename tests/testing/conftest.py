"""A place for runs: in memory, for each of them waits for the disk some dozen times."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="contract-", dir=MEMORY if MEMORY.is_dir() else None))
    yield place
    shutil.rmtree(place)
