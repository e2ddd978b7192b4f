"""The pytest plugin of the command: the fixture `train_lm`. Imported in every pytest session, so it
imports next to nothing; torch comes with the first call.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import TrainLM

__all__ = ["train_lm"]


@pytest.fixture
def train_lm(tmp_path: Path) -> TrainLM:
    """`train_lm("--max_steps 3")` runs the command in this process, with a model that trains in
    milliseconds, and returns what came of it: see `trainer_lm.testing.TrainLM`. It writes to
    `tmp_path / "run"`.
    """
    from .testing import TrainLM

    return TrainLM(tmp_path)
