"""The run as one picture: matplotlib without a display and without its global state."""

from __future__ import annotations

import gc
import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from .files import MARK
from .layers import Layer, Spread, read_layers, sort_worst
from .state import MonitorState
from .verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["draw_picture"]

# Colours that the colour-blind tell apart (Okabe and Ito, 2008), and a shape for each.
_STYLES: Final[dict[Verdict, tuple[str, str]]] = {
    "healthy": ("#0072B2", "o"),
    "vanishing": ("#E69F00", "v"),
    "disconnected": ("#7A7A7A", "s"),
    "exploding": ("#D55E00", "^"),
    "non-finite": ("#9E2A83", "X"),
}
_NORM, _CLIP, _BAD, _VANISH = (
    _STYLES[verdict][0] for verdict in ("healthy", "exploding", "non-finite", "vanishing")
)
_INK: Final = "#222222"
_FAINT: Final = "#D9D9D9"

_NORM_INCHES: Final = 1.7
_ROW_INCHES: Final = 0.19
_LONGEST_NAME: Final = 46
_MOST_ROWS: Final = 300
"""57 inches. It takes seconds; matplotlib 3.8 draws no more than 2,800 at all."""
_TALL: Final = 40
"""Layers above which the picture is longer than a screen: its axes are labelled at the top too."""


def draw_picture(state: MonitorState, vanish_threshold: float, clip_limit: float | None) -> bytes:
    """Returns a PNG: the total norm over the run; median and range of every layer.

    Layers stand in the model's order from top to bottom; every size is on a logarithmic axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    every = read_layers(state)
    layers = _choose(every)
    ratios = [layer.update_ratio for layer in layers]
    columns = 2 if any(ratio.most for ratio in ratios) else 1
    heights = (_NORM_INCHES, max(1.0, _ROW_INCHES * len(layers)))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(10, sum(heights) + 2.6), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(_title(state, layers, every), x=0.012, ha="left", fontsize=12, color=_INK)
    grid = figure.add_gridspec(2, columns, height_ratios=heights)
    _draw_norm(figure.add_subplot(grid[0, :]), state, clip_limit)
    rms_axes = figure.add_subplot(grid[1, 0])
    rms = [layer.rms for layer in layers]
    _draw_spreads(rms_axes, layers, rms, "rms of the gradient, before clipping")
    lines = _draw_threshold(rms_axes, rms, vanish_threshold)
    if columns == 2:
        ratio_axes = figure.add_subplot(grid[1, 1], sharey=rms_axes)
        _draw_spreads(ratio_axes, layers, ratios, "size of the update / size of the weights")
        ratio_axes.tick_params(axis="y", left=False, labelleft=False)
    names = [_shorten(layer.label) for layer in layers]
    rms_axes.set_yticks(range(len(layers)), names, fontsize=8, parse_math=False)
    rms_axes.set_ylim(len(layers) - 0.4, -0.6)
    lines = [*_legend(state, layers, clip_limit), *lines]
    figure.legend(handles=lines, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": MARK})
    gc.collect()  # matplotlib leaves exceptions in circles, whose frames lead to the run's
    return buffer.getvalue()


def _choose(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Returns the layers, or of more than a picture can hold the worst, in the same order."""
    if len(layers) <= _MOST_ROWS:
        return layers
    worst = {layer.name for layer in sort_worst(layers)[:_MOST_ROWS]}
    return [layer for layer in layers if layer.name in worst]


def _title(state: MonitorState, layers: Sequence[Layer], every: Sequence[Layer]) -> str:
    share = "" if len(layers) == len(every) else f"the {len(layers)} worst of "
    return (
        f"Gradient flow: {share}{len(every)} layers, {state.measured} measurements "
        f"up to update {state.last_step}"
    )


def _draw_norm(axes: Axes, state: MonitorState, clip_limit: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    samples = state.history.samples
    steps = [sample.step for sample in samples]
    norms = [sample.total_norm or math.nan for sample in samples]  # a line stops at NaN
    marker = "o" if len(samples) <= 80 else ""
    axes.plot(steps, norms, color=_NORM, linewidth=1.2, marker=marker, markersize=3)
    for sample in samples:
        if sample.total_norm is None:
            axes.axvline(sample.step, color=_BAD, linewidth=1)
    if clip_limit is not None:
        axes.axhline(clip_limit, color=_CLIP, linestyle="--", linewidth=1)
    _make_logarithmic(axes, "y", norms if clip_limit is None else [*norms, clip_limit])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("update", fontsize=9)
    _style(axes, "total norm of the gradient, before clipping")


def _draw_spreads(
    axes: Axes, layers: Sequence[Layer], spreads: Sequence[Spread], title: str
) -> None:
    """Draws each layer's range as a bar and its median as a mark, as its verdict looks."""
    ends: list[float] = []
    for verdict, (colour, marker) in _STYLES.items():
        places, least, middle, most = [], [], [], []
        for place, (layer, spread) in enumerate(zip(layers, spreads, strict=True)):
            if layer.verdict == verdict and spread.most:
                places.append(place)
                least.append(spread.least or spread.most)
                middle.append(spread.median or spread.most)
                most.append(spread.most)
        axes.hlines(places, least, most, color=colour, alpha=0.35, linewidth=5)
        axes.plot(middle, places, linestyle="", marker=marker, color=colour, markersize=5)
        ends += least + most
    _write_verdicts(axes, layers, spreads)
    _make_logarithmic(axes, "x", ends)
    _style(axes, title)
    axes.tick_params(axis="x", labeltop=len(layers) > _TALL)
    axes.grid(axis="y", color=_FAINT, linewidth=0.4)


def _write_verdicts(axes: Axes, layers: Sequence[Layer], spreads: Sequence[Spread]) -> None:
    """Says in words what a layer without a bar is."""
    for place, (layer, spread) in enumerate(zip(layers, spreads, strict=True)):
        if not spread.most:
            axes.annotate(
                "zero" if layer.verdict == "healthy" else layer.verdict,
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_STYLES[layer.verdict][0],
            )


def _draw_threshold(axes: Axes, spreads: Sequence[Spread], threshold: float) -> list[Line2D]:
    """Draws it where a layer came near: elsewhere it would only squeeze the picture."""
    lows = [spread.least for spread in spreads if spread.least]
    if not lows or threshold <= 0 or min(lows) > 30 * threshold:
        return []
    line = axes.axvline(threshold, color=_VANISH, linestyle="--", linewidth=1)
    line.set_label(f"vanishing below {threshold:g}")
    return [line]


def _make_logarithmic(axes: Axes, direction: Literal["x", "y"], values: Sequence[float]) -> None:
    """Spans whole powers of ten, so that at least two are labelled, and nothing else is."""
    from matplotlib.ticker import LogLocator, NullFormatter

    sizes = [math.log10(value) for value in values if value > 0]
    if not sizes:
        return
    low, high = math.floor(min(sizes) - 0.05), math.ceil(max(sizes) + 0.05)
    axes.set(**{f"{direction}scale": "log", f"{direction}lim": (10.0**low, 10.0**high)})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_formatter(NullFormatter())


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)


def _legend(state: MonitorState, layers: Sequence[Layer], clip_limit: float | None) -> list[Line2D]:
    from matplotlib.lines import Line2D

    present = {layer.verdict for layer in layers}
    lines = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=verdict)
        for verdict, (colour, marker) in _STYLES.items()
        if verdict in present
    ]
    lines.append(
        Line2D([], [], linewidth=5, alpha=0.35, color=_INK, label="range, with the median")
    )
    if clip_limit is not None:
        label = f"clipped above {clip_limit:g}"
        lines.append(Line2D([], [], linewidth=1, linestyle="--", color=_CLIP, label=label))
    if any(sample.total_norm is None for sample in state.history.samples):
        lines.append(Line2D([], [], linewidth=1, color=_BAD, label="update with a norm not finite"))
    return lines


def _shorten(name: str) -> str:
    """Leaves out the first parts of a long name: the last ones tell layers apart."""
    parts = name.split(".")
    while len(parts) > 1 and len(".".join(parts)) > _LONGEST_NAME:
        del parts[0]
    short = ".".join(parts)[-_LONGEST_NAME:]
    return short if short == name else "…" + short
