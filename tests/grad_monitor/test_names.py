"""Names of layers may hold anything: what people read of them is right, and nothing breaks."""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from trainer_gradient_monitor import GradientMonitorCallback
from trainer_gradient_monitor.layers import read_layers
from trainer_gradient_monitor.page import render_page
from trainer_gradient_monitor.picture import draw_picture
from trainer_gradient_monitor.report import Report
from trainer_gradient_monitor.state import MonitorState

NAMES = {  # name -> what a person reads
    "plain": "plain",
    "<!--<script>": "<!--<script>",
    "</script><b>": "</script><b>",
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "a & b &lt; c": "a & b &lt; c",
    "quote \" ' `${1}`": "quote \" ' `${1}`",
    "line\u2028and\u2029paragraph": r"line\u2028and\u2029paragraph",
    "nul\0 new\nline \r\t": r"nul\x00 new\nline \r\t",
    "turned \u202eround\u202c \u200f": r"turned \u202eround\u202c \u200f",
    "half of a pair \ud800": r"half of a pair \ud800",
    r"$\frac$": r"$\frac$",
    "$$": "$$",
    "$a_b$ x^2_3 {": "$a_b$ x^2_3 {",
    "back\\slash \\n": "back\\slash \\n",
    "层 слой שכבה": "层 слой שכבה",
    '"DATA"': '"DATA"',
    "x" * 10_000: "x" * 59 + "…" + "x" * 60,
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def make_state() -> MonitorState:
    state = MonitorState.fresh({}, tuple(NAMES), 8)
    state.verdicts = dict.fromkeys(NAMES, "disconnected")
    return state


def test_a_name_is_written_as_people_can_read_it() -> None:
    assert [layer.label for layer in read_layers(make_state())] == [*NAMES.values()]


def test_the_page_has_no_letter_of_a_name_that_means_something_to_a_browser() -> None:
    page = render_page(make_state(), None, 1e-7, None)
    data = page[page.index("const data = ") :].splitlines()[0]
    assert not re.search(r"[<>&\u2028\u2029\0]", data)
    assert page.count("<script>") == page.count("</script>") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_page_shows_every_name(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(make_state(), None, 1e-7, None))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    table = done.stdout[done.stdout.index('id="verdicts"') :]
    cells = re.findall(r"<tr[^>]*><td[^>]*>(.*?)</td>", table)
    assert [html.unescape(cell.replace("<wbr>", "")) for cell in cells] == [*NAMES.values()]


def test_the_picture_is_drawn_with_every_name() -> None:
    picture = Image.open(io.BytesIO(draw_picture(make_state(), 1e-7, None)))
    assert picture.width == 1200


def test_a_picture_that_fails_costs_the_picture_only(tmp_path, caplog, monkeypatch) -> None:
    from matplotlib import rcParams

    monkeypatch.setitem(rcParams, "figure.titlesize", -1)  # a file of settings that is wrong
    monkeypatch.setitem(rcParams, "text.usetex", True)  # and no TeX on this machine
    monkeypatch.setenv("PATH", "")
    report = Report(tmp_path, 1e-7, None)
    for _ in range(2):
        report.write(make_state(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_flow.html"]
    assert caplog.text.count("gradient_flow.png cannot be written") == 1


def test_the_log_has_one_line_a_layer_whatever_its_name(make, tmp_path, caplog) -> None:
    caplog.set_level("INFO")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("a\nb", nn.Linear(8, 1))
            self.add_module("c\u202ed", nn.Linear(8, 1))

        def forward(self, x):
            return self.get_submodule("a\nb")(x) * 1e-30

    monitor = GradientMonitorCallback(monitor_interval=5)
    result = make(monitor, tmp_path, model=Net()).train()
    assert result.switched_off == ()
    assert "\u202e" not in caplog.text
    assert "a\nb" not in caplog.text
    assert r"a\nb" in caplog.text
