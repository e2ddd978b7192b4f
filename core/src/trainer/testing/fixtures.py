"""The pytest plugin: two fixtures. Imported in every pytest session, so it imports next to nothing;
torch comes with the first trainer.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .recorder import Recorder
    from .tiny import TinyTrainer

__all__ = ["recorder", "tiny_trainer"]


@pytest.fixture
def tiny_trainer(tmp_path: Path) -> TinyTrainer:
    """`tiny_trainer(callbacks=[...], epochs=2, **config)` returns a Trainer that trains in
    milliseconds: see `trainer.testing.make_tiny_trainer`. It writes to `tmp_path / "run"`.
    """
    from .tiny import make_tiny_trainer

    return functools.partial(make_tiny_trainer, output_dir=tmp_path / "run")


@pytest.fixture
def recorder() -> Recorder:
    """A callback that keeps the ordered list of hook calls, with their arguments."""
    from .recorder import Recorder

    return Recorder()
