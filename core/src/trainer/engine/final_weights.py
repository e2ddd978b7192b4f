"""Whose weights the model has at the end of a run: those of the last update, or what a callback has
put in their place, which it says by `note_weights`, or by `load_weights`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from ..counters import Position
from ..processes.replicas import sum_bits
from ..result import ModelWeights
from ..view.view import View

__all__ = ["describe_weights", "noting_changes"]


def describe_weights(position: Position) -> ModelWeights:
    """Returns whose they are at `position`, with the metrics that were found at their update."""
    noted, step = position.weights, position.step
    epoch = position.epoch if position.batch else max(position.epoch - 1, 0)  # of the last update
    if noted is None or noted["at"] != step:  # updates have changed them since
        return ModelWeights("last", epoch, step, _find_row(position, step)[1])
    if noted["step"] is None:
        return ModelWeights("changed", epoch, step, {}, noted["detail"])
    found, metrics = _find_row(position, noted["step"])
    kind: Literal["restored", "changed"] = "restored" if noted["step"] < step else "changed"
    known = next((each for each in (noted["epoch"], found) if each is not None), epoch)
    return ModelWeights(kind, known, noted["step"], metrics, noted["detail"])


def _find_row(position: Position, step: int) -> tuple[int | None, dict[str, float]]:
    """Returns epoch and metrics of the last validation or epoch end at an update, if any."""
    rows = [row for row in position.history if row["step"] == step]
    row = dict(rows[-1]) if rows else {}
    row.pop("step", None)
    return row.pop("epoch", None), row


@contextlib.contextmanager
def noting_changes(view: View) -> Iterator[None]:
    """Notes that callbacks have changed the weights inside, where none has said whose they are now.
    It costs two passes over the weights, where callbacks may.
    """
    callbacks, noted = view.manager, view.position.weights
    asked = set(callbacks.implementers("on_train_end"))
    foreign = [each for each in callbacks.plugins if each.distribution != "trainer-core"]
    if not any(each.name in asked for each in foreign):
        yield
        return
    before = _sum_weights(view)
    yield
    if view.position.weights is noted and _sum_weights(view) != before:
        view.note_weights("a callback has changed them at the end of the run")


def _sum_weights(view: View) -> list[int]:
    plain = [p for p in view.model.parameters() if p.layout == torch.strided]
    return sum_bits([p for p in plain if not p.is_quantized])
