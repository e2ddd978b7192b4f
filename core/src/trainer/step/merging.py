"""What metrics of torchmetrics have seen in several processes, put together. Knows torchmetrics by
what it is handed, and imports it never.

Its own synchronisation communicates state by state, so it waits for ever, or aborts, where one
process has none. Here whole metrics are gathered, and put together by what they declare: states
that are lists become longer, others are reduced by the metric itself, from a public `dist_sync_fn`
that has the states of all processes already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..processes.ranks import Ranks

__all__ = ["is_torchmetric", "keeps_predictions", "merge_torchmetrics"]


def is_torchmetric(metric: object) -> bool:
    """Whether `metric` is one of torchmetrics, or a collection; where it is, that is imported."""
    room = sys.modules.get("torchmetrics")
    return room is not None and isinstance(metric, (room.Metric, room.MetricCollection))


def keeps_predictions(metric: Any) -> bool:
    """Whether a metric keeps all that it has seen of a set, and not sums of it."""
    states = [state for part in _parts(metric) for state in part.metric_state.values()]
    return any(isinstance(state, list) for state in states)


def merge_torchmetrics(metric: Any, ranks: Ranks) -> Any:
    """Returns a metric that has seen what those of all processes have, on the CPU; alone, `metric`
    itself.
    """
    if ranks.is_alone:
        return metric
    _spread_states(metric)
    everyone = ranks.gather(metric.cpu(), "metric")
    seen = [each for each in everyone if any(part.update_called for part in _parts(each))]
    merged, *others = seen or everyone[:1]
    for part, *parts in zip(_parts(merged), *map(_parts, others), strict=True):
        _merge_states(part, parts)
    return merged


def _parts(metric: Any) -> list[Any]:
    """Returns the metrics in a metric, itself first."""
    room = sys.modules["torchmetrics"]
    return [each for each in metric.modules() if isinstance(each, room.Metric)]


def _spread_states(metric: Any) -> None:
    """Lets those of a collection that are updated as one have a state each, as reading it does."""
    room = sys.modules["torchmetrics"]
    for each in metric.modules():
        if isinstance(each, room.MetricCollection):
            each.values()


def _merge_states(part: Any, others: Sequence[Any]) -> None:
    gathered: dict[int, list[Tensor]] = {}
    for name, own in part.metric_state.items():
        states = [own, *(getattr(other, name) for other in others)]
        if isinstance(own, list):
            setattr(part, name, [tensor for state in states for tensor in state])
        else:
            gathered[id(own)] = states

    def sync(tensor: Tensor, group: object = None) -> list[Tensor]:
        return gathered.get(id(tensor), [tensor])

    part.distributed_available_fn = _is_never
    if gathered:
        part.sync(dist_sync_fn=sync, distributed_available=lambda: True)
        reduced = dict(part.metric_state)
        part.unsync()  # or `compute` would refuse to do it again
        for name, state in reduced.items():
            setattr(part, name, state)


def _is_never() -> bool:
    """Whether a metric has to synchronise what it has seen: that is done."""
    return False
