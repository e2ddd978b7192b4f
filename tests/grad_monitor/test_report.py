"""The picture and the page: opened as a person opens them."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from trainer import Trainer
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_gradient_monitor.arithmetic import BINS
from trainer_gradient_monitor.layers import read_layers
from trainer_gradient_monitor.measurement import COLUMNS, Reading
from trainer_gradient_monitor.page import render_page
from trainer_gradient_monitor.report import Report
from trainer_gradient_monitor.state import MonitorState
from trainer_gradient_monitor.verdicts import judge_all

Make = Callable[..., Trainer]
RecordOf = Callable[[Path], list[dict[str, Any]]]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def invent_run(
    layers: int, steps: int, decades: float = 7.0
) -> tuple[MonitorState, Reading | None]:
    """A run whose first layers vanish slowly, and whose last has a NaN half-way."""
    rows = [f"transformer.layers.{i // 2}.{'attention' if i % 2 else 'mlp'}" for i in range(layers)]
    state, last = MonitorState.fresh({}, rows, 512), None
    groups = {row: (row,) for row in rows}
    for step in range(1, steps + 1):
        rms = [10 ** (-2.5 - decades * (1 - i / layers) * step / steps) for i in range(layers)]
        columns = {name: list(rms) for name in COLUMNS}
        columns["nonfinite"] = [0.0] * layers
        columns["zero_fraction"] = [0.25] * layers
        if step == steps // 2:
            columns = {name: [*values[:-1], math.nan] for name, values in columns.items()}
            columns["nonfinite"][-1] = 3.0
        norm = math.nan if columns["nonfinite"][-1] else 2.0 / step
        histogram = [[1 / BINS] * BINS for _ in rows]
        last = Reading(tuple(rows), columns, norm, 1, {}, (), histogram)
        state.count_update(skipped=False)
        state.count_measured(step, last.clipped)
        verdicts = judge_all(groups, last, vanish_threshold=1e-7, explode_limit=math.inf)
        state.history.add(last, verdicts, step=step, epoch=0, skipped=False)
        state.remember(verdicts, (), nonfinite=False)
    return state, last


def write_report(folder: Path, layers: int, decades: float = 7.0) -> Report:
    """Writes picture and page of such a run."""
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder, 1e-7, 1.0)
    report.write(*invent_run(layers, 30, decades))
    return report


def draw(folder: Path, monkeypatch: pytest.MonkeyPatch, layers: int, decades: float) -> Figure:
    """Writes picture and page of such a run; returns what is in the picture."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        save(figure, *arguments, **options)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    report = write_report(folder, layers, decades)
    assert report.picture.read_bytes().startswith(b"\x89PNG")
    return drawn[0]


def open_page(page: Path, profile: Path, *options: str, width: int = 1280) -> str:
    """Returns the document after its scripts have run; any word on the console is a failure."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        *options,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'data-ready="yes"' in done.stdout
    return done.stdout


def read_table(document: str) -> list[list[str]]:
    body = document[document.index('id="verdicts"') :]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body[: body.index("</table>")])
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]


@needs_browser
def test_the_numbers_of_the_page_are_those_of_the_record(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    monitor = GradientMonitorCallback(monitor_interval=4, monitor_histogram=True)
    make(monitor, tmp_path / "run", max_grad_norm=0.06).train()
    line = record_of(tmp_path / "run")[-1]
    page = tmp_path / "run" / "gradient_flow" / "gradient_flow.html"
    document = open_page(page, tmp_path / "profile")
    head, *rows = read_table(document)
    assert [row[0] for row in rows] == line["layers"]["name"]
    assert [row[1] for row in rows] == line["layers"]["verdict"]
    for column, name in (("rms", "rms_pre_clip"), ("update ratio", "update_ratio")):
        shown = [float(row[head.index(column)]) for row in rows]
        assert shown == pytest.approx(line["layers"][name], rel=6e-3)  # three digits
    assert "<b>5 of 20</b>measured" in document
    assert "clipped above 0.06" in document


@needs_browser
def test_the_page_draws_the_norm_the_clip_line_and_a_cell_per_layer_and_update(
    make: Make, tmp_path: Path
) -> None:
    make(GradientMonitorCallback(monitor_interval=4), tmp_path, max_grad_norm=0.06).train()
    page = tmp_path / "gradient_flow" / "gradient_flow.html"
    document = open_page(page, tmp_path / "profile")
    assert re.search(r'<path class="norm" d="M[\d. ]+(L[\d. ]+){4}"', document)
    assert '<line class="clip" x1="' in document[document.index('id="norm"') :]
    assert '<canvas width="5" height="3"' in document[document.index('id="heat"') :]


@needs_browser
@pytest.mark.parametrize(("layers", "width"), [(1, 400), (4, 1280), (150, 400), (150, 1280)])
def test_the_page_opens_with_any_number_of_layers(tmp_path: Path, layers: int, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(*invent_run(layers, 30), 1e-7, 1.0))
    document = open_page(page, tmp_path / "profile", width=width)
    _, *rows = read_table(document)
    assert len(rows) == layers
    assert f"Show all {layers} layers" in document
    assert "not finite" in document


@needs_browser
def test_the_page_opens_in_dark_mode_and_before_anything_was_measured(tmp_path: Path) -> None:
    report = Report(tmp_path, 1e-7, None)
    report.write(MonitorState.fresh({}, ("a",), 8), None)
    dark = "--blink-settings=preferredColorScheme=0"
    document = open_page(report.page, tmp_path / "profile", dark)
    assert "nothing was measured yet" in document


def test_the_page_is_one_file_that_needs_no_network(tmp_path: Path) -> None:
    text = write_report(tmp_path, 4).page.read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(link|img|iframe|script\s)|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_a_name_cannot_break_out_of_the_data(tmp_path: Path) -> None:
    state = MonitorState.fresh({}, ("</script><b>",), 8)
    state.verdicts = {"</script><b>": "disconnected"}
    report = Report(tmp_path, 1e-7, None)
    report.write(state, None)
    assert report.page.read_text().count("</script>") == 1


@pytest.mark.parametrize(("layers", "decades"), [(1, 7.0), (4, 7.0), (4, 0.4), (150, 7.0)])
def test_labels_of_the_picture_are_legible_and_apart(
    tmp_path: Path, layers: int, decades: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw(tmp_path, monkeypatch, layers, decades)
    labels = [label for axes in figure.axes for label in axes.get_yticklabels() if label.get_text()]
    names = [label for label in labels if "layers" in label.get_text()]
    assert len(names) == layers
    boxes = sorted((label.get_window_extent() for label in names), key=lambda box: box.y0)
    for low, high in pairwise(boxes):
        assert low.y1 <= high.y0 + 0.5  # pixels
    assert all(label.get_fontsize() >= 8 for label in names)
    whole = figure.bbox
    for axes in figure.axes:
        ticks = axes.get_xticklabels(which="both")
        shown = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
        inside = [box for box in shown if box.width and whole.x0 <= box.x0 <= whole.x1]
        inside.sort(key=lambda box: (round(box.y0), box.x0))
        for left, right in pairwise(inside):
            assert round(left.y0) != round(right.y0) or left.x1 <= right.x0
    assert all(box.x0 >= whole.x0 for box in boxes)


def test_the_picture_has_layers_in_order_with_median_range_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw(tmp_path, monkeypatch, layers=4, decades=7.0)
    state, _ = invent_run(4, 30)
    layers = read_layers(state)
    norm, rms, _ = figure.axes
    assert norm.get_yscale() == rms.get_xscale() == "log"
    assert [label.get_text() for label in rms.get_yticklabels()] == [each.name for each in layers]
    assert rms.yaxis.get_inverted()  # the first layer is at the top
    ranges: dict[float, tuple[float, float]] = {}
    for collection in rms.collections:
        for (least, place), (most, _) in collection.get_segments():
            ranges[place] = least, most
    marks = [line for line in rms.lines if line.get_linestyle() == "None"]
    medians = {y: x for line in marks for x, y in zip(*line.get_data(), strict=True)}
    assert [ranges[i] for i in range(4)] == [(each.rms.least, each.rms.most) for each in layers]
    assert [medians[i] for i in range(4)] == [each.rms.median for each in layers]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {layer.verdict for layer in layers} <= legend


def test_the_picture_is_drawn_at_snapshots_and_at_the_end(make: Make, tmp_path: Path) -> None:
    from trainer_callback import TrainerCallback

    seen: list[bool] = []

    class Look(TrainerCallback):
        def on_batch_end(self, trainer: Any) -> None:  # type: ignore[override]
            seen.append((tmp_path / "gradient_flow" / "gradient_flow.png").exists())

    trainer = make(
        GradientMonitorCallback(), tmp_path, others=[Look()], snapshot_interval=5, epochs=3
    )
    trainer.train()
    assert not seen[0]
    assert seen[-1]


def test_no_report_is_written_where_none_is_wanted(make: Make, tmp_path: Path) -> None:
    make(GradientMonitorCallback(report=False), tmp_path).train()
    names = {path.name for path in (tmp_path / "gradient_flow").iterdir()}
    assert names == {"gradients.jsonl"}


def test_without_matplotlib_the_page_is_written_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = write_report(tmp_path, 2)
    report.write(MonitorState.fresh({}, ("a",), 8), None)
    assert report.page.exists()
    assert not report.picture.exists()
    lines = [r for r in caplog.records if "matplotlib cannot be imported" in r.getMessage()]
    assert len(lines) == 1


@pytest.mark.slow
def test_a_picture_of_very_many_layers_has_the_worst_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 2,900 rows is more than matplotlib 3.8 can draw, or anybody looks at."""
    figure = draw(tmp_path, monkeypatch, layers=2900, decades=7.0)
    rms = figure.axes[1]
    names = [label.get_text() for label in rms.get_yticklabels()]
    rows = invent_run(2900, 30)[0].history.rows
    assert len(names) == 300
    assert names == [row for row in rows if row in set(names)]  # in the model's order
    assert names[0] == rows[0]  # which vanishes
    assert figure._suptitle is not None
    assert "the 300 worst of 2900 layers" in figure._suptitle.get_text()


@pytest.mark.slow
@needs_browser
def test_the_page_opens_with_very_many_layers_and_their_histograms(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(*invent_run(4500, 12), 1e-7, 1.0))
    document = open_page(page, tmp_path / "profile")
    assert "Show all 4500 layers" in document
    assert page.stat().st_size < 12e6
    assert "<h2>Magnitudes" in document
    assert '<section id="magnitudes" hidden' not in document


def test_the_page_of_very_many_layers_has_fewer_columns() -> None:
    state, _ = invent_run(4500, 3)
    state.history.samples[:] = state.history.samples * 100
    text = render_page(state, None, 1e-7, None)
    (steps,) = re.findall(r'"steps":\[([\d,]*)\]', text)
    assert 20 <= len(steps.split(",")) <= 60
