"""Everything of transformers that this package uses and that is not public."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["reload_weights"]


def reload_weights(trainer: Any, checkpoint: Path) -> None:
    """Loads the weights of `checkpoint` into the model once more, as `train` has done."""
    trainer._load_from_checkpoint(str(checkpoint))
