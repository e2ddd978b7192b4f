"""`trainer report` and `trainer compare`: what they show is what a run has written."""

from __future__ import annotations

import html
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.testing import make_tiny_trainer
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_tool.cli import main
from trainer_tool.run_curves import thin

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "a'b\"c`d", "nul\0x",
    "rtl \u202e gnp \u05e9\u05dc\u05d5\u05dd", "$$\\frac{1}{2}$$",
    "@x{safe} $x %{y} ${title} $title", "half \ud800 pair", "\\(x\\)", "__proto__", "x" * 300,
]  # fmt: skip


def write_log(place: Path, lines: list[dict[str, Any]], rest: str = "") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"epoch": 0, **line}) + "\n" for line in lines)
    (place / "metrics.jsonl").write_text(text + rest)
    return place


def read_log(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


class Page(HTMLParser):
    """A page as a parser of HTML sees it: its tags, its text, and the data of its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_cell = False
        self.scripts: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.pictures = [Picture(item) for item in json.loads(self.scripts[0])]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self.in_cell = True
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if self.in_cell:
            self.cells[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def rows(self, name: str) -> list[list[str]]:
        return [row[1:] for row in self.cells if row[0] == name]


class Picture:
    """What is drawn in one figure: the columns of each renderer."""

    def __init__(self, item: Any) -> None:
        self.lines: dict[str, tuple[list[int], list[float]]] = {}
        self.events: list[tuple[int, str]] = []
        self.cells: dict[str, list[Any]] = {}
        sources: dict[str, dict[str, list[Any]]] = {}
        for renderer in item["doc"]["roots"][0]["attributes"]["renderers"]:
            own, source = renderer["attributes"], renderer["attributes"]["data_source"]
            if "attributes" in source:
                entries = source["attributes"]["data"]["entries"]
                sources[source["id"]] = {key: [*map(to_number, v)] for key, v in entries}
            data, kind = sources[source["id"]], own["glyph"]["name"]
            if kind == "Line":
                assert own["name"] not in self.lines
                self.lines[own["name"]] = (data["x"], data["y"])
            elif "what" in data:
                self.events += zip(data["x"], data["what"], strict=True)
            elif kind == "Rect":
                self.cells = data


def to_number(value: Any) -> Any:
    return float(value["value"]) if isinstance(value, dict) else value


def report(*places: Path, output: Path) -> Page:
    assert main(["report", *map(str, places), "-o", str(output)]) == 0
    return Page(output)


def same(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "finished"
    own = [EarlyStoppingCallback(patience=9), GradientMonitorCallback(monitor_interval=2)]
    config = {"epochs": 5, "snapshot_interval": 3, "keep_snapshots": 9}
    make_tiny_trainer(own, output_dir=place, **config).train()
    return place


def test_every_point_of_every_curve_is_the_one_that_was_logged(finished, tmp_path):
    page = report(finished, output=tmp_path / "page.html")
    drawn = {name: line for each in page.pictures for name, line in each.lines.items()}
    logged: dict[str, list[tuple[int, float]]] = {}
    for line in read_log(finished):
        for name in line.keys() - {"step", "epoch", "_event", "_time", "ended", "callback_costs"}:
            points = logged.setdefault(name, [])
            if points[-1:] != [(line["step"], line[name])]:
                points.append((line["step"], line[name]))
    assert drawn.keys() == {name for name in logged if not name.startswith("restored_")}
    for name, (steps, values) in drawn.items():
        assert [*zip(steps, values, strict=True)] == logged[name]
    for name, points in logged.items():
        assert page.rows(f"last {name}") == [[f"{points[-1][1]:.6g}"]]


def test_best_snapshots_and_end_are_marked_on_the_loss(finished, tmp_path):
    page = report(finished, output=tmp_path / "page.html")
    loss = next(each for each in page.pictures if "val_loss" in each.lines)
    assert set(loss.lines) == {"loss", "train_loss", "val_loss"}
    steps, values = loss.lines["val_loss"]
    best = steps[values.index(min(values))]
    assert (best, "best val_loss so far") in loss.events
    assert (20, "finished, epochs") in loss.events
    marked = {step for step, what in loss.events if what == "snapshot"}
    kept = {int(each.name.split("-")[1]) for each in (finished / "snapshots").iterdir()}
    assert marked == kept >= {3, 6, 9}


def test_gradient_flow_is_the_record_of_the_monitor(finished, tmp_path):
    page = report(finished, output=tmp_path / "page.html")
    (flow,) = [each.cells for each in page.pictures if each.cells]
    record = (finished / "gradient_flow" / "gradients.jsonl").read_text().splitlines()
    expected = {
        (line["step"], name, rms, verdict)
        for line in map(json.loads, record)
        for name, rms, verdict in zip(
            *(line["layers"][key] for key in ("name", "rms_pre_clip", "verdict")), strict=True
        )
    }
    keys = ("x", "layer", "rms", "verdict")
    assert {*zip(*(flow[key] for key in keys), strict=True)} == expected


def test_costs_versions_and_options_are_on_the_page(finished, tmp_path):
    page = report(finished, output=tmp_path / "page.html")
    cost = read_log(finished)[-1]["callback_costs"]["gradient_monitor"]["on_backward_end"]
    shown = f"{cost['seconds']:.3f} in {cost['calls']:.0f} calls"
    assert page.rows("gradient_monitor on_backward_end") == [[shown]]
    assert page.rows("snapshot_interval") == [["3"]]
    assert page.rows("EarlyStoppingCallback.patience") == [["9"]]
    assert page.rows("trainer-plugin-early-stopping") == [["0.1.0"]]


def test_a_run_that_goes_on_can_be_looked_at(tiny_trainer, tmp_path):
    class Looks(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            if epoch == 1:
                page = report(trainer.output_dir, output=tmp_path / "page.html")
                assert page.rows("state") == [[f"going on as process {os.getpid()}"]]
                assert page.rows("updates") == [["8"]]

    result = tiny_trainer([Looks()], output_dir=tmp_path / "run", epochs=3).train()
    assert result.status == "finished"


def test_a_killed_run_and_its_resume_can_be_looked_at(tiny_trainer, tmp_path):
    place = tmp_path / "run"

    class Kills(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 7:
                trainer.log({"loss": math.nan})
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        tiny_trainer([Kills()], output_dir=place, snapshot_interval=3, snapshot_sync=True).train()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with (place / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "epoch": 1, "lo\xff')  # half a line
    page = report(place, output=tmp_path / "page.html")
    assert page.rows("state") == [["cut off"]]
    assert page.rows("updates") == [["7"]]
    assert (7, "loss is nan") in page.pictures[0].events
    tiny_trainer(output_dir=place, snapshot_interval=3).train(resume=True)
    page = report(place, output=tmp_path / "page.html")
    assert page.rows("state") == [["finished, epochs"]]
    assert (6, "went on from a snapshot") in page.pictures[0].events


def test_skipped_updates_are_marked(tmp_path):
    place, model = tmp_path / "run", nn.Linear(2, 1)
    batches = [torch.ones(2, 2) * (math.nan if index in (2, 7) else 1) for index in range(10)]
    config = TrainerConfig(output_dir=place, log_interval=1, on_nonfinite="skip", epochs=1)
    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=config,
        discover=False,
    ).train()
    page = report(place, output=tmp_path / "page.html")
    skips = [event for event in page.pictures[0].events if "skipped" in event[1]]
    assert skips == [(step, "1 updates skipped up to here") for step in (3, 8)]


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path):
    place = write_log(tmp_path / "run", [])
    page = report(place, output=tmp_path / "page.html")
    assert page.pictures == []
    assert "there is no curve" in page.text


def test_a_metric_is_drawn_with_its_sets_and_parts(tmp_path):
    names = [
        *("loss", "train_loss", "val_loss", "clean/loss", "noisy/loss", "val_f1", "clean/f1"),
        *("noisy/f1", "loss/d", "train_loss/d", "learning_rate/g", "learning_rate/d", "gpu/power"),
    ]
    twice = {"val_loss": "clean/loss", "val_f1": "clean/f1"}  # that of the first set
    place = write_log(
        tmp_path / "run",
        [{"step": s, **{n: s + names.index(twice.get(n, n)) for n in names}} for s in (1, 2)],
    )
    page = report(place, output=tmp_path / "page.html")
    assert [{*each.lines} for each in page.pictures] == [
        {"loss", "train_loss", "clean/loss", "noisy/loss", "loss/d", "train_loss/d"},
        {"clean/f1", "noisy/f1"},
        {"learning_rate/g", "learning_rate/d"},
        {"gpu/power"},
    ]


def test_a_value_that_is_logged_twice_at_an_update_is_one_point(tmp_path):
    lines = [{"step": 1, "val_loss": 3.0}, {"step": 2, "val_loss": 2.0}]
    place = write_log(tmp_path / "run", [*lines, {"step": 2, "val_loss": 2.0}])
    (loss,) = report(place, output=tmp_path / "page.html").pictures
    assert loss.lines == {"val_loss": ([1, 2], [3.0, 2.0])}


def sweep(folder: Path) -> list[Path]:
    places = []
    for number in range(8):
        lines = [{"step": s, "loss": 1 / s + number, "val_loss": 2 / s + number} for s in (1, 2, 3)]
        places.append(write_log(folder / f"run-{number}", lines))
        text = f"seed: 1\nlearning_rate: 0.00{number + 1}\n"
        (places[-1] / "config.yaml").write_text(text)
    return places


def test_eight_runs_are_laid_over_each_other_and_begin_with_what_differs(tmp_path):
    page = report(*sweep(tmp_path), output=tmp_path / "page.html")
    (loss,) = page.pictures
    assert len(loss.lines) == 16
    assert loss.lines["run-5: loss"] == ([1, 2, 3], [6, 5.5, 5 + 1 / 3])
    names = [f"run-{number}" for number in range(8)]
    assert page.cells[0] == ["", *names]
    assert page.cells[1] == ["learning_rate", *(f"0.00{n + 1}" for n in range(8))]
    assert page.rows("seed") == [["1"]]
    assert page.rows("best val_loss") == [[f"{2 / 3 + n:.6g}" for n in range(8)]]


def test_compare_prints_the_tables_of_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    places = sweep(tmp_path)
    page = report(*places, output=tmp_path / "page.html")
    capsys.readouterr()
    assert main(["compare", "--all", *map(str, places)]) == 0
    printed = [re.split(r"  +", each.strip()) for each in capsys.readouterr().out.splitlines()]
    assert [row for row in page.cells if row[0]] == [row for row in printed if row[1:] and row[0]][
        1:
    ]


def test_compare_puts_as_many_runs_side_by_side_as_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["compare", *map(str, sweep(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 60 for line in out.splitlines())
    heads = [line.split() for line in out.splitlines() if line.startswith("  ") and line.strip()]
    assert [*chain(*heads)] == [f"run-{number}" for number in range(8)]


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    places = [write_log(tmp_path / name / "run", [{"step": 1, "loss": 1.0}]) for name in "ab"]
    assert main(["compare", *map(str, places)]) == 0
    assert "a/run" in capsys.readouterr().out


def write_hostile(place: Path) -> Path:
    lines = [{"step": s, **dict.fromkeys(HOSTILE, s * 1.5), "loss/<b>d": 1.0} for s in (1, 2, 3)]
    lines += [{"step": 3, "text": {HOSTILE[0]: f"</pre>{HOSTILE[1]}\0\x1b[2J \ud800"}}]
    costs = {HOSTILE[1]: {"on_x": {"calls": 1, "seconds": 2.0}}}
    lines += [{"step": 3, "ended": {"status": HOSTILE[0]}, "callback_costs": costs}]
    write_log(place, lines)
    (place / "config.yaml").write_text('name: "</script><u>x"\n')
    (place / "gradient_flow").mkdir()
    layers = {"name": HOSTILE, "rms_pre_clip": [None] * 11, "verdict": HOSTILE}
    lines = [{"step": s, "epoch": 0, "layers": layers} for s in (1, 3)]
    record = "".join(json.dumps(line) + "\n" for line in lines)
    (place / "gradient_flow" / "gradients.jsonl").write_text(record)
    return place


def test_hostile_names_stay_text(tmp_path):
    place = write_hostile(tmp_path / "<b>ru\u202en & 'x' \"$title")
    page = report(place, output=tmp_path / "page.html")
    plain = report(write_log(tmp_path / "r", [{"step": 1}]), output=tmp_path / "plain.html")
    own = {tag for tag, _ in plain.tags} | {"figure", "figcaption", "input", "svg"}
    assert {tag for tag, _ in page.tags} <= own | {"line", "pre", "details", "summary"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.scripts) == 3
    for name in HOSTILE:
        assert "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) in page.text
    assert "\u202e" not in page.text
    assert "\0" not in page.text


def test_nothing_on_the_page_leads_to_a_network(finished, tmp_path):
    page = report(finished, output=tmp_path / "page.html")
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    policy = [each["content"] for _, each in page.tags if "content-security" in str(each).lower()]
    assert policy[0].startswith("default-src 'none';")


def browse(page: Path, profile: Path, *options: str) -> str:
    """Returns the document as the browser has it in the end. On a busy machine its clock may be
    over before it has drawn anything, one time in five; each try is a browser of its own.
    """
    for number in range(8):
        document = browse_once(page, profile / str(number), *options)
        if 'data-ready="' in document:
            break
    return document


def browse_once(page: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--dump-dom"),
            *(*options, page.as_uri()),
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in said if "setting log level" not in line] == []
    return done.stdout


@needs_browser
@pytest.mark.parametrize("options", [("--window-size=1280,900",), ("--window-size=400,900",)])
def test_a_browser_draws_the_page_without_a_network(finished, tmp_path, options):
    report(finished, output=tmp_path / "page.html")
    document = browse(tmp_path / "page.html", tmp_path / "profile", *options)
    assert 'data-ready="' in document
    assert len(re.findall(r'data-item="\d+"[^>]*><div', document)) >= 2


@needs_browser
def test_a_browser_runs_nothing_of_a_hostile_run(tmp_path):
    report(write_hostile(tmp_path / "run"), output=tmp_path / "page.html")
    document = browse(tmp_path / "page.html", tmp_path / "profile", "--window-size=1280,9000")
    assert 'data-ready="' in document
    assert "<img" not in document
    assert html.escape(HOSTILE[0]) in document


@pytest.mark.parametrize("most", [300, 1000, 5000])
def test_thinning_keeps_ends_extremes_and_what_is_not_finite(most):
    draws = random.Random(0)
    points = [(step, draws.gauss(0, 1)) for step in range(100_000)]
    points[50_000] = (50_000, math.nan)
    points[70_000] = (70_000, -99.0)
    points[70_001] = (70_001, 99.0)
    thinned = thin(points, most)
    assert len(thinned) <= most + 3
    assert {*thinned} <= {*points}
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)
    assert {points[0], points[-1], *points[70_000:70_002]} <= {*thinned}
    assert any(math.isnan(value) for _, value in thinned)


def test_a_hundred_thousand_lines_make_a_small_page(tmp_path):
    lines = [{"step": step, "loss": 1 / step, "grad_norm": step % 7} for step in range(1, 100_001)]
    page = report(write_log(tmp_path / "run", lines), output=tmp_path / "page.html")
    for each in page.pictures:
        for steps, values in each.lines.values():
            assert len(steps) < 2000
            assert (steps[0], steps[-1]) == (1, 100_000)
            assert all(lines[s - 1].get("loss") == v or s % 7 == v for s, v in zip(steps, values))  # noqa: B905


GOOD = b'{"step": 1, "epoch": 0, "loss": 1.0}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no run in"),
        (b"caf\xe9\n", "byte 3 is not UTF-8"),
        (b'{"step": 1, "epoch": 0, "loss": \n{}\n', "line 1 is none that a run has written"),
        (GOOD + b"[1]\n", "line 2 is none that a run has written"),
        (GOOD + b'{"step": -1, "epoch": 0}\n', "line 2 is none that a run has written"),
        (b'{"step": 1, "epoch": 0, "loss": [1]}\n', "line 1 has [1] for a number"),
        (b"[" * 100_000 + b"\n", "line 1 is none that a run has written"),
        ("a directory", "Is a directory"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, command, content, said):
    place = tmp_path / "run"
    place.mkdir()
    if content == "a directory":
        (place / "metrics.jsonl").mkdir()
    elif content is not None:
        (place / "metrics.jsonl").write_bytes(content)
    assert main([command, str(place)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (place / "report.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "gradient_flow/gradients.jsonl"])
def test_a_file_beside_the_log_that_cannot_be_read_is_refused(tmp_path, capsys, name):
    place = write_log(tmp_path / "run", [{"step": 1}])
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_bytes(b"caf\xe9: 1\n")
    assert main(["report", str(place)]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


def test_a_run_that_is_named_twice_is_refused(tmp_path, capsys):
    place = write_log(tmp_path / "run", [{"step": 1}])
    assert main(["compare", str(place), str(tmp_path / "." / "x" / ".." / "run")]) == 2
    assert "are the same directory" in capsys.readouterr().err


def test_a_file_that_is_no_page_of_this_command_stays_as_it_is(tmp_path, capsys):
    place = write_log(tmp_path / "run", [{"step": 1}])
    (tmp_path / "mine.html").write_text("mine")
    assert main(["report", str(place), "-o", str(tmp_path / "mine.html")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert main(["report", str(place), "-o", str(tmp_path)]) == 2


def test_its_own_page_is_written_anew(tmp_path, capsys):
    place = write_log(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    assert main(["report", str(place)]) == 0
    assert capsys.readouterr().out == f"{place / 'report.html'}\n"
    write_log(place, [{"step": 77, "loss": 1.0}])
    assert main(["report", str(place)]) == 0
    assert Page(place / "report.html").rows("updates") == [["77"]]


def test_without_bokeh_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    place = write_log(tmp_path / "run", [{"step": 1}])
    assert main(["report", str(place)]) == 2
    assert "pip install 'trainer-core[report]'" in capsys.readouterr().err
    assert main(["compare", str(place)]) == 0


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_look_at_a_run_imports_no_torch(finished, command):
    code = (
        "import sys; from trainer_tool.cli import main; "
        f"main(['{command}', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(finished)], check=False).returncode == 0
