"""Curves and heatmaps as figures of bokeh. Colors of the surroundings are the page's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from bokeh.models import FixedTicker, HoverTool, NumeralTickFormatter, PlainText, Range1d
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

from .run_curves import Chart, Event
from .run_files import RunFiles
from .table import clean

__all__ = ["COLORS", "DASHES", "MARKERS", "draw_chart", "draw_gradients"]

COLORS: Final = (
    *("#2f7ed8", "#d9651a", "#1f9d6b", "#a05bd6", "#d6404f", "#1597a5", "#a8782b", "#d0579b"),
)
"""Each can be told from white and from black."""

DASHES: Final[Sequence[list[int]]] = ([], [7, 4], [2, 3], [9, 3, 2, 3], [14, 5])
MARKERS: Final[Mapping[str, tuple[str, int, str]]] = {
    "best": ("star", 14, "\u2605"),
    "end": ("circle", 9, "\u25cf"),
    "snapshot": ("square", 6, "\u25a0"),
    "resume": ("triangle", 12, "\u25b2"),
    "skipped": ("inverted_triangle", 10, "\u25bc"),
    "not finite": ("x", 10, "\u2715"),
}
"""Kind of an event -> bokeh's marker, its size in pixels, and a character that looks like it."""

_FEW: Final = 60
"""Points of a curve that are drawn each: a line alone hides where somebody has measured."""

_LOGARITHMIC: Final = 1000.0
"""How often the lowest value has to go into the highest one."""

_MOST_CELLS: Final = 6000
_LONGEST_NAME: Final = 26


def draw_chart(chart: Chart, runs: Sequence[RunFiles]) -> figure:
    """Returns the curves of a chart over updates, with what happened on them."""
    values = [value for curve in chart.curves for _, value in curve.points if math.isfinite(value)]
    low, high = min(values, default=0), max(values, default=0)
    spans = low > 0 and high > _LOGARITHMIC * low and chart.title != "learning_rate"
    scale = "log" if spans else "linear"
    picture = _make_figure(250, max(run.step for run in runs), y_axis_type=scale)
    names = list(dict.fromkeys(curve.name for curve in chart.curves))
    lines = []
    for curve in chart.curves:
        kind = names.index(curve.name)
        color = COLORS[(kind if len(runs) == 1 else curve.run) % len(COLORS)]
        data = {"x": [step for step, _ in curve.points], "y": [y for _, y in curve.points]}
        label = curve.name if len(runs) == 1 else f"{runs[curve.run].name}: {curve.name}"
        look: dict[str, Any] = {"color": color, "name": clean(label), "tags": [curve.run, kind]}
        dash = DASHES[0 if len(runs) == 1 else kind % len(DASHES)]
        line = picture.line("x", "y", source=data, line_width=1.6, line_dash=dash, **look)
        lines.append(line)
        if len(curve.points) <= _FEW:
            picture.scatter("x", "y", source=line.data_source, size=4, **look)
    shown = [("curve", "$name"), ("update", "@x"), ("value", "@y{%.7g}")]
    picture.add_tools(_hover(lines, shown, "vline" if len(lines) == 1 else "mouse"))
    for number in range(len(runs)):
        events = [event for event in chart.events if event.run == number]
        if events:
            _mark(picture, events, COLORS[number % len(COLORS)] if len(runs) > 1 else "#848c94")
    return picture


def _mark(picture: figure, events: Sequence[Event], color: str) -> None:
    data = {
        "x": [event.step for event in events],
        "y": [event.value for event in events],
        "what": [clean(event.text) for event in events],
        "marker": [MARKERS[event.kind][0] for event in events],
        "size": [MARKERS[event.kind][1] for event in events],
    }
    tags = [events[0].run]
    look: dict[str, Any] = {"marker": "marker", "size": "size", "color": color, "tags": tags}
    marks = picture.scatter("x", "y", source=data, **look)
    picture.add_tools(_hover([marks], [("event", "@what"), ("update", "@x")], "mouse"))


def draw_gradients(lines: Sequence[Mapping[str, Any]]) -> figure:
    """Returns a heatmap of the layers' gradients (rms, base-10 logarithm), the first layer at the
    bottom; gray is what is not finite or has none.
    """
    layers: list[str] = [str(name) for name in lines[-1]["layers"]["name"]] if lines else []
    every = -(-len(lines) * len(layers) // _MOST_CELLS) or 1
    lines = lines[::every]
    steps = [line["step"] for line in lines]
    rows = {name: number for number, name in enumerate(layers)}
    cells = [
        (step, width, rows[name], rms, name, verdict)
        for line, step, width in zip(lines, steps, _widths(steps), strict=True)
        for name, rms, verdict in zip(*(line["layers"][key] for key in _COLUMNS), strict=True)
        if name in rows
    ]
    logs = [_log10(cell[3]) for cell in cells]
    finite = [each for each in logs if math.isfinite(each)] or [0.0]
    picture = _make_figure(90 + 15 * len(layers), max(steps, default=0))
    picture.y_range = Range1d(start=-0.5, end=len(layers) - 0.5)
    picture.yaxis.ticker = FixedTicker(ticks=[*rows.values()])
    labels: dict[float | str, Any] = {n: PlainText(text=_shorten(name)) for name, n in rows.items()}
    picture.yaxis.major_label_overrides = labels
    keys = ("x", "width", "y", "rms", "layer", "verdict")
    data: dict[str, Any] = {key: [cell[i] for cell in cells] for i, key in enumerate(keys)}
    data["layer"] = [clean(cell[4]) for cell in cells]
    data["rms"] = [math.nan if cell[3] is None else cell[3] for cell in cells]
    data["log"] = logs
    color = linear_cmap("log", Viridis256, min(finite), max(finite) + 1e-9, nan_color="gray")
    drawn = picture.rect("x", "y", "width", 1, source=data, fill_color=color, line_color=None)
    gray = {"title_text_color": "#808890", "major_label_text_color": "#808890"}
    bar = drawn.construct_color_bar(width=8, title="log10 rms", **gray)
    bar.background_fill_color = None
    picture.add_layout(bar, "right")
    shown = [("layer", "@layer"), ("update", "@x"), ("rms", "@rms{%.4g}"), ("verdict", "@verdict")]
    picture.add_tools(_hover([drawn], shown, "mouse"))
    return picture


_COLUMNS: Final = ("name", "rms_pre_clip", "verdict")


def _make_figure(height: int, last: int, **options: Any) -> figure:
    picture = figure(
        height=height,
        sizing_mode="stretch_width",
        x_range=Range1d(start=0, end=max(last, 1) * 1.02, bounds="auto"),
        tools="xbox_zoom,pan,reset",
        active_drag="xbox_zoom",
        toolbar_location="above",
        toolbar_inner=True,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=58,
        **options,
    )
    picture.toolbar.autohide, picture.toolbar.logo = True, None
    picture.toolbar.stylesheets = [":host(.bk-inner) { background: transparent; }"]
    picture.xaxis.axis_label = "updates"
    picture.xaxis.formatter = NumeralTickFormatter(format="0.[00]a")
    return picture


def _hover(
    renderers: Sequence[Any], shown: Sequence[tuple[str, str]], mode: Literal["mouse", "vline"]
) -> HoverTool:
    tool = HoverTool(renderers=[*renderers], tooltips=[*shown], mode=mode)
    tool.formatters = {"@y": "printf", "@rms": "printf"}
    return tool


def _widths(steps: Sequence[int]) -> Iterator[float]:
    """Yields how wide the column of each update is: they meet where they are evenly spaced."""
    gaps = [after - before for before, after in itertools.pairwise(steps)] or [1]
    yield from (min(gaps[max(i - 1, 0) : i + 1] or gaps[-1:]) for i in range(len(steps)))


def _shorten(name: str) -> str:
    """Returns the end of a long name, which tells one layer from another."""
    return clean(name if len(name) <= _LONGEST_NAME else f"\u2026{name[1 - _LONGEST_NAME :]}")


def _log10(value: object) -> float:
    return math.log10(value) if isinstance(value, (int, float)) and value > 0 else math.nan
