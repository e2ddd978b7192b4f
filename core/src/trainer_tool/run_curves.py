"""Which curves of some runs belong into one picture, and what happened on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .run_files import Point, RunFiles

__all__ = ["Chart", "Curve", "Event", "best_of", "make_charts", "name_monitor", "thin"]

_OF_PARTS: Final = frozenset({"loss", "learning_rate", "grad_norm"})
"""Metrics of which each part of a run (a loss, an optimizer) has its own: `loss/d`."""

_MOST_POINTS: Final = 1600
"""Of one picture; more than a screen has columns only make it slow."""

_LEAST_POINTS: Final = 200


@dataclass
class Curve:
    """One metric of one run.

    Attributes:
        run: the number of the run.
        name: as it was logged.
        points: what is drawn; see `thin`.
    """

    run: int
    name: str
    points: list[Point]


@dataclass
class Event:
    """Something that happened at an update.

    Attributes:
        run: the number of the run.
        step: the update.
        kind: `best`, `end`, `snapshot`, `resume`, `skipped` or `not finite`.
        text: what, in words.
        value: where it is marked.
    """

    run: int
    step: int
    kind: str
    text: str
    value: float


@dataclass
class Chart:
    """One picture: a metric in training and in validation, of every set and run."""

    title: str
    curves: list[Curve]
    events: list[Event]


def make_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Returns the pictures, those of losses and validated metrics first. What has one point at most
    in every run is a number and no curve.
    """
    names = dict.fromkeys(name for run in runs for name in run.series)
    sets = {name.removesuffix("/loss") for name in names if name.endswith("/loss")}
    by_title: dict[str, list[str]] = {}
    for name in names:
        by_title.setdefault(_title(name, sets), []).append(name)
    ranked = sorted(by_title, key=lambda title: _rank(title, by_title[title], sets))
    charts = [_make_chart(title, by_title[title], runs) for title in ranked]
    return [chart for chart in charts if any(len(curve.points) > 1 for curve in chart.curves)]


def _title(name: str, sets: set[str]) -> str:
    head, _, tail = name.partition("/")
    if tail and head in sets:
        return _strip(tail)
    if tail and _strip(head) in _OF_PARTS:
        return _strip(head)
    return _strip(name)


def _strip(name: str) -> str:
    return name.removeprefix("train_").removeprefix("val_") or name


def _rank(title: str, names: Sequence[str], sets: set[str]) -> tuple[int, str]:
    """Returns what to sort by: the loss, what is validated, learning rate, throughput, the rest."""
    validated = any(name.startswith("val_") or name.partition("/")[0] in sets for name in names)
    order = (title == "loss", validated, title == "learning_rate", title.startswith("throughput"))
    return (order.index(True) if True in order else len(order), title)


def _make_chart(title: str, names: Sequence[str], runs: Sequence[RunFiles]) -> Chart:
    most = max(_LEAST_POINTS, _MOST_POINTS // (len(runs) * len(names)))
    curves: list[Curve] = []
    events: list[Event] = []
    for number, run in enumerate(runs):
        known = [name for name in names if name in run.series and not _is_twice(name, names, run)]
        curves += [Curve(number, name, thin(run.series[name], most)) for name in known]
        if known:
            events += _find_events(number, run, known)
    return Chart(title, curves, events)


def _is_twice(name: str, names: Sequence[str], run: RunFiles) -> bool:
    """Whether it is the `val_NAME` of several validation sets: that of the first one once more."""
    others = [run.series.get(each) for each in names if each != name]
    return name.startswith("val_") and run.series[name] in others


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Returns about `most` of the points: the first, the last, and of each group of neighbours the
    lowest, the highest, and one that is not finite.
    """
    if len(points) <= most:
        return [*points]
    together = -(-3 * len(points) // most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), together):
        group = range(start, min(start + together, len(points)))
        finite = [each for each in group if math.isfinite(points[each][1])]
        if finite:
            kept.add(min(finite, key=lambda each: points[each][1]))
            kept.add(max(finite, key=lambda each: points[each][1]))
        if len(finite) < len(group):
            kept.add(next(each for each in group if not math.isfinite(points[each][1])))
    return [points[each] for each in sorted(kept)]


def name_monitor(run: RunFiles) -> tuple[str, str]:
    """Returns the metric that says which update is the best, and `min` or `max`: what a callback of
    the run watches, or else the validation loss.
    """
    for plugin in run.manifest.get("plugins", {}).values():
        options = plugin.get("options")
        if isinstance(options, dict) and options.get("monitor") in run.series:
            return options["monitor"], str(options.get("mode"))
    return "val_loss", "min"


def best_of(run: RunFiles) -> Point | None:
    """Returns the best point of the run so far, or None."""
    name, mode = name_monitor(run)
    points = [point for point in run.series.get(name, ()) if math.isfinite(point[1])]
    pick = max if mode == "max" else min
    return pick(points, key=lambda point: point[1]) if points else None


def _find_events(number: int, run: RunFiles, names: Sequence[str]) -> Iterator[Event]:
    """Yields what happened in the run, each where the first curve that reaches it is; the best one
    last, so that nothing hides it.
    """
    found = [("snapshot", step, "snapshot") for step in run.snapshots]
    found += [("end", run.step, run.state)]
    found += [("resume", step, "went on from a snapshot") for step in run.resumes]
    found += [("skipped", *each) for each in _find_skipped(run)]
    for kind, step, text in found:
        values = (_value_at(run.series[name], step) for name in names)
        value = next((each for each in values if each is not None), None)
        if value is not None:
            yield Event(number, step, kind, text, value)
    for name in names:
        points = run.series[name]
        for before, (step, value) in zip([None, *points], points, strict=False):
            if before is not None and math.isfinite(before[1]) and not math.isfinite(value):
                yield Event(number, step, "not finite", f"{name} is {value}", before[1])
    monitor, _ = name_monitor(run)
    best = best_of(run)
    if best is not None and monitor in names:
        yield Event(number, best[0], "best", f"best {monitor} so far", best[1])


def _find_skipped(run: RunFiles) -> Iterator[tuple[int, str]]:
    points = run.series.get("skipped_updates", [])
    for (_, before), (step, now) in zip([(0, 0.0), *points], points, strict=False):
        if now > before:
            yield step, f"{now - before:g} updates skipped up to here"


def _value_at(points: Sequence[Point], step: int) -> float | None:
    """Returns the last finite value up to `step`, or None."""
    return next((v for s, v in reversed(points) if s <= step and math.isfinite(v)), None)
