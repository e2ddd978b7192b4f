"""Some runs as one page: a static template, tables in HTML, and pictures that bokeh draws when they
come into sight. Every word of a run is text: in the page by escaping, in pictures as plain data.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files
from string import Template
from typing import Final

from bokeh.embed import json_item
from bokeh.plotting import figure
from bokeh.resources import Resources

from .run_curves import Chart, make_charts
from .run_files import RunFiles
from .run_pictures import COLORS, DASHES, MARKERS, draw_chart, draw_gradients
from .run_table import Rows, make_tables
from .table import clean

__all__ = ["MARK", "render_page"]

MARK: Final = "trainer report, a page of runs"
"""In the first bytes of the page: no other file has it."""

_MOST_TEXTS: Final = 40
"""Samples of a run, the newest."""


def render_page(runs: Sequence[RunFiles]) -> str:
    """Returns the page: one file, no network, light or dark as its reader has it."""
    charts, tables = make_charts(runs), make_tables(runs)
    pictures = [draw_chart(chart, runs) for chart in charts]
    blocks = [
        _frame(number, pictures[number], chart.title, _key(chart, len(runs)))
        for number, chart in enumerate(charts)
    ]
    flows = []
    for run in runs:
        for name, lines in run.gradients.items():
            pictures.append(draw_gradients(lines))
            flows.append(_frame(len(pictures) - 1, pictures[-1], f"{name} of {run.name}", ""))
    names = ", ".join(run.name for run in runs)
    scripts = Resources(mode="inline", components=["bokeh"], log_level="error").js_raw
    return Template((files(__package__) / "run_page.html").read_text(encoding="utf-8")).substitute(
        mark=MARK,
        title=_escape(names if len(runs) < 4 else f"{len(runs)} runs"),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        runs="".join(_describe(number, run, len(runs)) for number, run in enumerate(runs)),
        differ=_table("Options that differ", tables.pop("Options that differ", []), runs),
        charts="".join(blocks) or "<p>Nothing has been logged twice yet: there is no curve.</p>",
        marks="".join(f"<li>{sign} {kind}</li>" for kind, (_, _, sign) in MARKERS.items()),
        results=_table("Results", tables.pop("Results"), runs),
        flows=f"<h2>Gradient flow</h2><div class=grid>{''.join(flows)}</div>" if flows else "",
        texts=_texts(runs),
        tables="".join(_fold(title, _table("", rows, runs)) for title, rows in tables.items()),
        pictures=_as_script([json_item(picture) for picture in pictures]),
        bokeh="\n".join(scripts),
    )


def _escape(text: str) -> str:
    return html.escape(clean(text))


def _as_script(data: object) -> str:
    """Returns JSON that no parser of HTML takes for anything else."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _describe(number: int, run: RunFiles, count: int) -> str:
    color = COLORS[number % len(COLORS)]
    box = f"<input type=checkbox checked data-run={number}>" if count > 1 else ""
    swatch = f"<i style='background:{color}'></i>" if count > 1 else ""
    facts = f"{run.state}; update {run.step:,}, epoch {run.epoch}"
    problems = "".join(f"<em>{_escape(problem)}</em>" for problem in run.problems)
    name = f"<b><bdi>{_escape(run.name)}</bdi></b>"
    return f"<li><label>{box}{swatch}{name}</label> <bdi>{_escape(facts)}</bdi>{problems}</li>"


def _key(chart: Chart, count: int) -> str:
    """Returns what tells the curves of a chart: of one run a color, of several a dash."""
    key = ""
    names = list(dict.fromkeys(curve.name for curve in chart.curves))
    for number, name in enumerate(names if names != [chart.title] else ()):
        color = COLORS[number % len(COLORS)] if count == 1 else "currentColor"
        dash = "" if count == 1 else " ".join(map(str, DASHES[number % len(DASHES)]))
        line = (
            f"<line x2=26 y1=4 y2=4 stroke='{color}' stroke-width=2.5 stroke-dasharray='{dash}' />"
        )
        box = f"<input type=checkbox checked data-curve={number}>" if len(names) > 1 else ""
        key += f"<li><label>{box}<svg width=26 height=8>{line}</svg> "
        key += f"<bdi>{_escape(name)}</bdi></label></li>"
    return key


def _frame(number: int, picture: figure, title: str, key: str) -> str:
    head = f"<figcaption><b><bdi>{_escape(title)}</bdi></b><ul class=key>{key}</ul></figcaption>"
    place = f"<div class=plot data-item={number} style='min-height:{picture.height}px'></div>"
    return f"<figure>{head}{place}</figure>"


def _table(title: str, rows: Rows, runs: Sequence[RunFiles]) -> str:
    if not rows:
        return ""
    wide = len(runs) > 1 and len(rows[0]) > 2
    head = _row("th", ("", *(run.name for run in runs))) if wide else ""
    body = "".join(_row("td", row) for row in rows)
    heading = f"<h2>{title}</h2>" if title else ""
    return f"{heading}<div class=wide><table>{head}{body}</table></div>"


def _row(tag: str, cells: Iterable[str]) -> str:
    parts = (f"<{tag}><bdi>{_escape(cell)}</bdi></{tag}>" for cell in cells)
    return f"<tr>{''.join(parts)}</tr>"


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


def _texts(runs: Sequence[RunFiles]) -> str:
    found = ""
    for run in runs:
        for number, (step, name, text) in enumerate(reversed(run.texts[-_MOST_TEXTS:])):
            title = _escape(f"{name} at update {step}" + (f", {run.name}" if len(runs) > 1 else ""))
            lines = "\n".join(map(_escape, text.expandtabs().splitlines()))
            opened = " open" if number == 0 else ""
            found += f"<details{opened}><summary><bdi>{title}</bdi></summary>"
            found += f"<pre dir=auto>{lines}</pre></details>"
    return f"<h2>Samples of text</h2>{found}" if found else ""
