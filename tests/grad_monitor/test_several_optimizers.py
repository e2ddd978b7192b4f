"""In a turn of several optimizers each has its own parameters measured and counted."""

import copy
import json
import math

import pytest

from trainer_callback import StopRequest
from trainer_gradient_monitor import GradientMonitorCallback


def make(**options):
    return GradientMonitorCallback(**{"monitor_interval": 2, "report": False, **options})


def read(folder):
    return [json.loads(line) for line in (folder / "gradients.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("level", ["global", "layer", "parameter"])
def test_each_optimizer_has_a_record_of_its_own_parameters(gan, tmp_path, level):
    host = gan(make(monitor_level=level), tmp_path)
    host.start()
    for _ in range(5):
        host.turn()
    rows = {"global": ["global"], "layer": ["{}"], "parameter": ["{}.weight", "{}.bias"]}[level]
    for part, folder in {"d": "gradient_flow", "g": "gradient_flow/g"}.items():
        lines = read(tmp_path / folder)
        assert [line["step"] for line in lines] == [2, 4]
        for line in lines:
            assert line["layers"]["name"] == [row.format(part) for row in rows]
            norms = line["layers"]["norm_pre_clip"]
            assert line["total_norm_pre_clip"] == pytest.approx(math.hypot(*norms), rel=1e-5)
            assert min(line["layers"]["update_ratio"]) > 0
            assert line["updates"] == 2


def test_scalars_of_another_optimizer_than_the_first_have_the_name_of_its_part(gan):
    host = gan(make())
    host.start()
    for _ in range(2):
        host.turn()
    (d_step, d), (g_step, g) = host.logged
    assert d_step == g_step == 2
    assert "grad_norm_pre_clip" in d
    assert {*g} == {f"{name}/g" for name in d if "flow_ratio" not in name}


def test_updates_skips_and_clips_are_counted_for_each_optimizer(gan, tmp_path):
    host = gan(make(monitor_interval=4), tmp_path)
    host.max_grad_norm = 1.0
    host.start()
    for names in [("d",), ("d", "g"), ("d",), ("d", "g")]:
        host.turn(*names, bad="d" if host.step == 0 else "")
    (d,), (g,) = read(tmp_path / "gradient_flow"), read(tmp_path / "gradient_flow" / "g")
    assert (d["updates"], d["skipped_updates"], d["clipped_updates"]) == (4, 1, 0)
    assert (g["updates"], g["skipped_updates"], g["clipped_updates"]) == (2, 0, 2)


def test_trouble_in_one_part_is_told_once_and_can_stop_the_run(gan, caplog):
    callback = make(monitor_interval=1, on_nonfinite="stop")
    host = gan(callback)
    host.start()
    host.turn()
    assert callback.should_stop_training(host) is None
    for _ in range(3):
        host.turn(bad="g")
    told = [message for message in caplog.messages if "NaN or infinite" in message]
    assert len(told) == 1
    assert "the first is g.weight" in told[0]
    assert isinstance(callback.should_stop_training(host), StopRequest)


def test_the_record_and_the_counts_of_each_go_on_after_a_resume(gan, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    host = gan(make(), whole)
    host.start()
    for _ in range(9):
        host.turn()
    first = gan(make(), broken)
    first.start()
    for _ in range(5):
        first.turn()
    state, weights = copy.deepcopy((first.save(), first.model.state_dict()))
    for _ in range(2):
        first.turn()  # which comes again
    second = gan(make(), broken)
    second.model.load_state_dict(weights)
    second.step = 5
    second.start(state)
    assert second.save() == state  # before the other optimizer is seen again
    for _ in range(4):
        second.turn()
    for folder in ("gradient_flow", "gradient_flow/g"):
        name = f"{folder}/gradients.jsonl"
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert second.save() == host.save()


def test_each_part_has_a_picture_a_page_and_a_summary(gan, tmp_path, caplog):
    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    callback = make(report=True)
    host = gan(callback, tmp_path)
    host.start()
    for _ in range(2):
        host.turn()
    callback.on_train_end(host, None)
    for folder in (tmp_path / "gradient_flow", tmp_path / "gradient_flow" / "g"):
        assert (folder / "gradient_flow.html").exists()
    assert sum("at 1 of 2 updates" in message for message in caplog.messages) == 2


def test_nothing_that_is_measured_is_of_a_part_that_the_filters_leave_out(gan, caplog):
    callback = make(monitor_include="g.*")
    host = gan(callback)
    host.start()
    for _ in range(2):
        host.turn()
    callback.on_train_end(host, None)
    assert len(host.logged) == 1
    assert "nothing was measured" not in caplog.text
