"""After a resume the record and the picture go on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import Trainer
from trainer_callback import CallbackError, TrainerCallback
from trainer_gradient_monitor import GradientMonitorCallback

Make = Callable[..., Trainer]
RecordOf = Callable[[Path], list[dict[str, Any]]]

CONFIG: dict[str, Any] = {"epochs": 4, "snapshot_interval": 8, "max_grad_norm": 0.06}


class Crash(TrainerCallback):
    """Ends the run after an update, like a process that dies there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Any) -> None:  # type: ignore[override]
        if trainer.step == self.step:
            raise RuntimeError("crash")


def monitor(**options: Any) -> GradientMonitorCallback:
    defaults = {"monitor_interval": 3, "history": 8, "report": False}
    return GradientMonitorCallback(**{**defaults, **options})


def crash(make: Make, path: Path, step: int, **options: Any) -> None:
    with pytest.raises(CallbackError, match="crash"):
        make(monitor(**options), path, others=[Crash(step)], **CONFIG).train()


@pytest.mark.parametrize("step", [9, 15, 16, 17, 23, 39])
def test_the_record_has_no_gap_and_no_double_line(make: Make, tmp_path: Path, step: int) -> None:
    make(monitor(), tmp_path / "whole", **CONFIG).train()
    crash(make, tmp_path / "broken", step)
    make(monitor(), tmp_path / "broken", **CONFIG).train(resume=True)
    whole, broken = (
        (tmp_path / name / "gradient_flow" / "gradients.jsonl").read_bytes()
        for name in ("whole", "broken")
    )
    assert broken == whole


@pytest.mark.parametrize(
    ("options", "measured"),
    [({}, 17), ({"monitor_interval": 7, "monitor_at_snapshots": False}, 5)],
    ids=["snapshots measured", "snapshots in between"],
)
def test_the_state_in_the_last_snapshot_is_that_of_an_unbroken_run(
    make: Make, tmp_path: Path, options: dict[str, Any], measured: int
) -> None:
    make(monitor(**options), tmp_path / "whole", **CONFIG).train()
    crash(make, tmp_path / "broken", 15, **options)
    again = make(monitor(**options), tmp_path / "broken", others=[Crash(30)], **CONFIG)
    with pytest.raises(CallbackError, match="crash"):
        again.train(resume=True)
    make(monitor(**options), tmp_path / "broken", **CONFIG).train(resume=True)
    whole, broken = (
        torch.load(tmp_path / name / "snapshots" / "step-00000040" / "state.pt", weights_only=True)[
            "callback_state"
        ]["GradientMonitorCallback"]
        for name in ("whole", "broken")
    )
    assert broken == whole
    assert whole["measured"] == measured


def read_page(path: Path) -> dict[str, Any]:
    text = (path / "gradient_flow" / "gradient_flow.html").read_text()
    start = text.index("const data = ") + len("const data = ")
    data, _ = json.JSONDecoder().raw_decode(text[start:])
    assert isinstance(data, dict)
    return data


def test_the_page_shows_the_whole_run(make: Make, tmp_path: Path) -> None:
    crash(make, tmp_path, 23, history=64, report=True)
    assert read_page(tmp_path)["steps"][-1] < 24
    make(monitor(history=64, report=True), tmp_path, **CONFIG).train(resume=True)
    page = read_page(tmp_path)
    expected = sorted({*range(3, 41, 3), 8, 16, 24, 32, 40})
    assert page["steps"] == expected
    assert page["measured"] == len(expected)
    assert page["updates"] == 40


def test_an_option_given_at_resume_is_used(make: Make, record_of: RecordOf, tmp_path: Path) -> None:
    crash(make, tmp_path, 17)
    make(monitor(monitor_interval=5), tmp_path, **CONFIG).train(resume=True)
    steps = [line["step"] for line in record_of(tmp_path)]
    assert steps == [3, 6, 8, 9, 12, 15, 16, 20, 24, 25, 30, 32, 35, 40]


def test_another_level_starts_a_new_history_and_goes_on_with_the_record(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    crash(make, tmp_path, 17)
    later = monitor(monitor_level="global", history=64)
    make(later, tmp_path, **CONFIG).train(resume=True)
    assert "level, filter or model changed since the snapshot: a new history starts" in caplog.text
    assert later.state.history.samples[0].step == 18
    assert later.state.updates == 40
    lines = record_of(tmp_path)
    assert [line["step"] for line in lines][:8] == [3, 6, 8, 9, 12, 15, 16, 18]
    assert [len(line["layers"]["name"]) for line in lines][6:8] == [3, 1]


def test_a_record_that_was_lost_is_a_warning(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crash(make, tmp_path, 17)
    (tmp_path / "gradient_flow" / "gradients.jsonl").unlink()
    make(monitor(), tmp_path, **CONFIG).train(resume=True)
    assert "ends at update 0, but 16 was measured: the record has a gap" in caplog.text
    assert record_of(tmp_path)[0]["step"] == 18


def test_a_monitor_that_joins_at_resume_starts_there(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    with pytest.raises(CallbackError, match="crash"):
        make(None, tmp_path, others=[Crash(17)], **CONFIG).train()
    joined = monitor()
    make(joined, tmp_path, **CONFIG).train(resume=True)
    assert record_of(tmp_path)[0]["step"] == 18
    assert joined.state.updates == 24


def test_a_fresh_run_in_an_old_directory_starts_a_fresh_record(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    crash(make, tmp_path, 17)
    make(monitor(), tmp_path, overwrite=True, **{**CONFIG, "epochs": 1}).train()
    assert [line["step"] for line in record_of(tmp_path)] == [3, 6, 8, 9, 10]
