"""When it measures, what it says, and what it does about trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import Trainer
from trainer_callback import CallbackError, TrainerCallback, UsageError
from trainer_callback.command_line.options import read_options
from trainer_gradient_monitor import GradientMonitorCallback

Make = Callable[..., Trainer]
RecordOf = Callable[[Path], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [8, 16, 20]),
        ({"monitor_interval": 4}, [4, 8, 12, 16, 20]),
        ({"monitor_interval": 7}, [7, 8, 14, 16, 20]),
        ({"monitor_interval": 7, "monitor_at_snapshots": False}, [7, 14]),
        ({"monitor_at_epochs": True, "monitor_at_snapshots": False}, [10, 20]),
        ({"monitor_at_epochs": True, "monitor_interval": 10}, [8, 10, 16, 20]),
    ],
)
def test_a_step_that_is_due_is_measured_once(
    make: Make, record_of: RecordOf, tmp_path: Path, options: dict[str, Any], steps: list[int]
) -> None:
    make(GradientMonitorCallback(report=False, **options), tmp_path, snapshot_interval=8).train()
    assert [line["step"] for line in record_of(tmp_path)] == steps


def test_a_snapshot_that_was_asked_for_is_measured_too(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    class Asks(TrainerCallback):
        def on_batch_start(self, trainer: Any, batch_idx: int) -> None:  # type: ignore[override]
            if trainer.step == 2:
                trainer.request_snapshot()

    make(GradientMonitorCallback(report=False), tmp_path, others=[Asks()], epochs=1).train()
    assert [line["step"] for line in record_of(tmp_path)] == [3, 10]


def test_without_an_output_directory_there_are_no_files(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    monitor = GradientMonitorCallback(report=False, monitor_interval=5)
    make(monitor, None).train()
    assert list(tmp_path.iterdir()) == []
    assert monitor.state.measured == 4
    assert "no files, for there is no output directory" in caplog.text


def test_a_run_that_measures_nothing_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make(GradientMonitorCallback(report=False), None).train()
    assert "nothing was measured in 20 updates" in caplog.text
    assert "Use monitor_interval=100" in caplog.text


def test_scalars_reach_every_logger(make: Make, tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []

    class Logger(TrainerCallback):
        def on_log(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override]
            if "grad_norm_pre_clip" in metrics:
                seen.append({**metrics, "step": step})

    monitor = GradientMonitorCallback(report=False, monitor_interval=10)
    make(monitor, tmp_path, others=[Logger()], max_grad_norm=1.0).train()
    assert [metrics["step"] for metrics in seen] == [10, 20]
    assert set(seen[0]) == {
        "step",
        "grad_norm_pre_clip",
        "grad_flow_ratio_pre_clip",
        "grad_skipped_updates",
        "grad_clip_factor",
        "grad_clip_rate",
    }


def test_a_change_of_verdict_is_one_line(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scales = iter([1.0, 1.0, 1e-9, 1e-9, 1.0, 1e6])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum() * next(scales)

    monitor = GradientMonitorCallback(report=False, monitor_interval=1, monitor_level="global")
    model = nn.Linear(8, 1)
    batches = [torch.ones(1, 8)] * 6
    make(monitor, tmp_path, model=model, batches=batches, loss_fn=loss, epochs=1).train()
    lines = [r.getMessage() for r in caplog.records if r.name == "trainer.gradient_monitor"]
    assert [line for line in lines if line.startswith("update")] == [
        "update 3: vanishing: global.",
        "update 5: healthy again: global.",
        "update 6: exploding: global.",
    ]


def test_exploding_is_more_than_so_many_times_the_running_median_of_the_total_norm(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    scales = iter([1.0, 3.0, 2.0, 199.0, 251.0, 299.0])  # the medians before: 1, 2, 2, 2.5, 3

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum() * next(scales)

    monitor = GradientMonitorCallback(report=False, monitor_interval=1, monitor_level="global")
    model, batches = nn.Linear(8, 1), [torch.ones(1, 8)] * 6
    make(monitor, tmp_path, model=model, batches=batches, loss_fn=loss, epochs=1).train()
    verdicts = [line["layers"]["verdict"][0] for line in record_of(tmp_path)]
    assert verdicts == [*["healthy"] * 4, "exploding", "healthy"]


def poison(step: int, name: str, value: float = math.nan) -> TrainerCallback:
    """A callback that puts one bad entry into a gradient; it must come before the monitor."""

    class Poison(TrainerCallback):
        def on_backward_end(self, trainer: Any) -> None:
            if trainer.step + 1 == step:
                trainer.model.get_parameter(name).grad.view(-1)[0] = value

    return Poison()


def train_poisoned(
    make: Make, tmp_path: Path, monitor: GradientMonitorCallback, **config: Any
) -> Any:
    trainer = make(None, tmp_path, others=[poison(6, "blocks.1.0.weight"), monitor], **config)
    return trainer.train()


@pytest.mark.parametrize("policy", ["ignore", "warn", "snapshot", "stop"])
def test_a_non_finite_gradient_is_counted_and_named(
    make: Make,
    record_of: RecordOf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    policy: Any,
) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_interval=1, on_nonfinite=policy)
    result = train_poisoned(
        make, tmp_path, monitor, on_nonfinite="skip", max_grad_norm=1.0, keep_snapshots=9
    )
    line = record_of(tmp_path)[5]
    assert line["nonfinite_parameters_pre_clip"] == {"blocks.1.0.weight": 1}
    assert line["layers"]["verdict"] == ["healthy", "non-finite", "healthy"]
    assert line["layers"]["nonfinite_pre_clip"] == [0, 1, 0]
    assert line["layers"]["rms_pre_clip"][1] is None
    assert line["total_norm_pre_clip"] is None
    assert monitor.state.nonfinite_measured == 1
    named = "update 6: NaN or infinite gradients in 1 parameters, the first is blocks.1.0.weight"
    assert (named in caplog.text) == (policy != "ignore")
    assert (result.stop_reason == "non_finite_gradient") == (policy == "stop")
    assert (tmp_path / "snapshots" / "step-00000006").exists() == (policy in ("snapshot", "stop"))


def test_a_run_that_a_bad_gradient_ends_says_where_it_came_from(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer import NonFiniteError

    monitor = GradientMonitorCallback(monitor_interval=1)
    with pytest.raises(NonFiniteError):
        train_poisoned(make, tmp_path, monitor, max_grad_norm=1.0)
    assert "the first is blocks.1.0.weight" in caplog.text
    assert [line["step"] for line in record_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert "non-finite" in (tmp_path / "gradient_flow" / "gradient_flow.html").read_text()


def test_updates_that_the_loss_scaler_skips_are_counted_and_no_alarm(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def steep(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).float().square().mean() * 10.0

    monitor = GradientMonitorCallback(report=False, monitor_interval=1)
    make(monitor, tmp_path, precision="fp16", loss_fn=steep, epochs=1).train()
    lines = record_of(tmp_path)
    skipped = [line["skipped"] for line in lines]
    assert any(skipped)
    assert not all(skipped)
    assert lines[-1]["skipped_updates"] == sum(skipped)
    assert [line["total_norm_pre_clip"] is None for line in lines] == skipped
    assert "NaN" not in caplog.text
    assert set(monitor.state.verdicts.values()) == {"healthy"}


def test_the_loss_scale_of_each_measured_update_is_recorded_logged_and_summed_up(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scales: list[float] = []

    class Look(TrainerCallback):
        def on_backward_end(self, trainer: Any) -> None:
            scales.append(trainer.loss_scale)

    def steep(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).float().square().mean() * 4.0

    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    monitor = GradientMonitorCallback(monitor_interval=1)
    options = {"precision": "fp16", "loss_fn": steep, "epochs": 1}
    trainer = make(monitor, tmp_path, others=[Look()], **options)
    trainer.train()
    assert len(set(scales)) > 1
    assert scales[-1] >= 16384.0  # as many digits as a scale has in practice
    assert [line["loss_scale"] for line in record_of(tmp_path)] == scales
    assert trainer.metrics["grad_loss_scale"] == scales[-1]
    assert f"; the loss scale is {scales[-1]:g}." in caplog.records[-1].getMessage()
    page = (tmp_path / "gradient_flow" / "gradient_flow.html").read_text()
    assert f'"loss_scale":"{scales[-1]:g}"' in page


def test_where_losses_are_not_scaled_there_is_no_scale(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    trainer = make(GradientMonitorCallback(report=False), tmp_path)
    trainer.train()
    assert record_of(tmp_path)[0]["loss_scale"] is None
    assert "grad_loss_scale" not in trainer.metrics


def test_ten_skipped_updates_in_a_row_are_warned_about_once(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).float().mean() * 1e30

    monitor = GradientMonitorCallback(report=False, monitor_interval=3)
    make(monitor, tmp_path, precision="fp16", loss_fn=broken, epochs=2).train()
    lines = [r.getMessage() for r in caplog.records if "in a row were skipped" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("update 10: 10 updates in a row were skipped")


def test_the_end_names_the_worst_layers_clip_rate_and_page(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    monitor = GradientMonitorCallback(monitor_level="parameter", vanish_threshold=1.0)
    make(monitor, tmp_path, max_grad_norm=1e-6).train()
    summary = caplog.records[-1].getMessage().splitlines()
    assert summary[0] == "gradients of 6 layers at 1 of 20 updates:"
    assert len(summary) == 1 + 1 + 5 + 2
    assert summary[2].split()[1] == "vanishing"
    assert summary[-2] == "  clipped 100.0% of the updates, skipped 0."
    assert summary[-1].endswith("gradient_flow.html")


def test_a_second_run_with_the_same_object_starts_clean(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_interval=5)
    states = []
    for name in "ab":
        make(monitor, tmp_path / name).train()
        states.append(monitor.state.to_plain())
    assert states[0] == states[1]
    assert record_of(tmp_path / "a") == record_of(tmp_path / "b")


def test_filters_that_leave_nothing_are_refused_before_the_first_step(
    make: Make, tmp_path: Path
) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_include="layers.*")
    trainer = make(monitor, tmp_path)
    with pytest.raises(UsageError, match=r"none of the model's 6 parameters.*blocks\.0\.0\.weight"):
        trainer.train()
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("monitor_interval", 0),
        ("monitor_interval", 2.5),
        ("monitor_interval", True),
        ("monitor_depth", 0),
        ("monitor_level", "layers"),
        ("monitor_norm_type", 0),
        ("monitor_norm_type", math.nan),
        ("vanish_threshold", -1.0),
        ("vanish_threshold", math.nan),
        ("explode_threshold", 0.0),
        ("on_nonfinite", "panic"),
        ("history", 1),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_construction(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be .*, got "):
        GradientMonitorCallback(**{option: value})


def test_a_monitor_that_is_never_due_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing else is due"):
        GradientMonitorCallback(report=False, monitor_at_snapshots=False)


SPECIFIED = {
    "monitor_at_snapshots": True,
    "monitor_interval": None,
    "monitor_at_epochs": False,
    "monitor_level": "layer",
    "monitor_depth": 2,
    "monitor_include": (),
    "monitor_exclude": (),
    "monitor_norm_type": 2.0,
    "monitor_update_ratio": True,
    "monitor_histogram": False,
    "vanish_threshold": 1e-7,
    "explode_threshold": 100.0,
    "on_nonfinite": "warn",
    "report": True,
    "history": 512,
}


def test_every_option_is_a_flag_with_its_default_and_a_help_line() -> None:
    options = read_options(GradientMonitorCallback, GradientMonitorCallback.option_prefix or "")
    assert {option.parameter: option.default for option in options} == SPECIFIED
    assert [option.flag for option in options] == [f"gradient_{name}" for name in SPECIFIED]
    assert all(option.help for option in options)


def test_every_option_is_a_plain_attribute() -> None:
    monitor = GradientMonitorCallback()
    assert {name: getattr(monitor, name) for name in SPECIFIED} == SPECIFIED


@pytest.mark.parametrize(
    ("options", "config", "told"),
    [
        ({"monitor_interval": 50}, {"max_steps": 5}, "monitor_interval 50 is beyond the 5 updates"),
        ({}, {}, "monitor_at_snapshots has no effect without an output directory"),
    ],
)
def test_an_option_without_effect_is_told_at_the_start(
    make: Make, caplog: pytest.LogCaptureFixture, options: Any, config: Any, told: str
) -> None:
    make(GradientMonitorCallback(**options), None, epochs=1, **config).train()
    assert caplog.text.count(told) == 1


def test_a_run_that_was_refused_before_its_first_update_is_given_no_advice(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(TrainerCallback):
        def on_train_start(self) -> None:
            raise ValueError("not today")

    with pytest.raises(CallbackError, match="not today"):
        make(GradientMonitorCallback(report=False), None, others=[Refuses()]).train()
    assert "nothing was measured" not in caplog.text
