"""The state of the plugins in a checkpoint of Lightning: plain data, which `torch.load` reads with
`weights_only=True`, and checks itself.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from typing import Any

import torch

from trainer.hosting import SavedState, StateFileError

__all__ = ["pack_state", "unpack_state"]

logger: logging.Logger = logging.getLogger("trainer")


def pack_state(saved: SavedState) -> dict[str, Any]:
    """Returns it as the state of one of Lightning's callbacks."""
    file = io.BytesIO()
    torch.save(saved.as_dict(), file)
    content = file.getbuffer()  # no copy: the average of a model may be large
    digest = hashlib.sha256(content).hexdigest()
    packed = torch.frombuffer(content, dtype=torch.uint8)
    return {"step": saved.step, "sha256": digest, "content": packed}


def unpack_state(
    packed: Mapping[str, Any] | None, step: int | None, source: str, *, strict: bool
) -> SavedState | None:
    """Returns what `pack_state` was given; None, with a warning, where there is none that fits.

    Args:
        packed: what was in the checkpoint; None: nothing.
        step: the update of the checkpoint; None: not known.
        source: how messages call the checkpoint.
        strict: refuse the run instead.

    Raises:
        StateFileError: with `strict`.
    """
    try:
        return _read(packed, step, source)
    except StateFileError as error:
        text = str(error).rstrip(".")
        if strict:
            raise StateFileError(
                f"{text}. Resume from another checkpoint, or without strict=True: then plugins "
                "start fresh."
            ) from error
        logger.warning("%s. All plugins start fresh; strict=True refuses that.", text)
        return None


def _read(packed: Mapping[str, Any] | None, step: int | None, source: str) -> SavedState:
    if not packed:
        raise StateFileError(f"{source} has no state of plugins")
    try:
        own, digest, content = packed["step"], packed["sha256"], packed["content"]
        data = content.cpu().numpy().tobytes()
    except (LookupError, TypeError, AttributeError) as error:
        raise StateFileError(f"{source} has no state of plugins: {error!r}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise StateFileError(f"the state of plugins in {source} is damaged")
    if step is not None and own != step:
        raise StateFileError(
            f"the state of plugins in {source} is of update {own}, and the checkpoint of update "
            f"{step}"
        )
    read = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return SavedState.from_dict(read, source)
