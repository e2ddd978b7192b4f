"""Which updates are recorded, what a trace has, and what is said where there is none."""

import logging

import pytest
import torch
from torch.profiler import profile

from trainer_callback import CallbackError, TrainerCallback, UsageError
from trainer_profiler import ProfilerCallback


class Texts(TrainerCallback):
    def __init__(self):
        self.texts = []

    def on_log_text(self, name, text, step):
        self.texts.append((step, name, text))


def is_on():
    return torch.autograd.profiler._is_profiler_enabled


def test_a_trace_has_the_phases_of_each_recorded_update(make, traces):
    make(ProfilerCallback(wait=2, warmup=1, active=2)).train()
    (found,) = traces().values()
    assert [*traces()] == ["rank-0-updates-4-5.json"]
    for phase in ("forward", "backward", "step"):
        assert found.count(phase) == 2
    assert "aten::addmm" in found
    assert not is_on()


def test_accumulated_batches_are_one_update(make, traces):
    callback = ProfilerCallback(wait=1, warmup=1, active=1)
    make(callback, gradient_accumulation_steps=2).train()
    found = traces()["rank-0-updates-3-3.json"]
    assert [found.count(phase) for phase in ("forward", "backward", "step")] == [2, 2, 1]


def test_a_validation_in_between_is_annotated(make, traces):
    make(ProfilerCallback(wait=2, warmup=1, active=3), eval_interval=5).train()
    assert traces()["rank-0-updates-4-6.json"].count("validation") == 1


def test_windows_follow_each_other(make, traces):
    make(ProfilerCallback(wait=1, warmup=1, active=2, repeat=2)).train()
    assert [*traces()] == ["rank-0-updates-3-4.json", "rank-0-updates-7-8.json"]


def test_windows_may_follow_without_a_wait(make, traces):
    make(ProfilerCallback(wait=0, warmup=1, active=1, repeat=3)).train()
    assert [*traces()] == [f"rank-0-updates-{step}-{step}.json" for step in (2, 4, 6)]


def test_the_operators_that_took_longest_are_a_text(make):
    texts = Texts()
    make(ProfilerCallback(wait=2, warmup=1, active=2), texts).train()
    ((step, name, text),) = texts.texts
    assert (step, name) == (5, "profiler/operators")
    assert "aten::addmm" in text
    assert "Self CPU time total" in text


def test_what_it_costs_is_said(make, caplog):
    caplog.set_level(logging.INFO)
    make(ProfilerCallback(wait=3, warmup=1, active=2)).train()
    assert "ms each, and others" in caplog.text


@pytest.mark.parametrize("option", ["record_shapes", "with_stack", "profile_memory"])
def test_more_can_be_recorded(make, tmp_path, option):
    make(ProfilerCallback(wait=1, warmup=1, active=1, **{option: True})).train()
    words = {"record_shapes": "Input Dims", "with_stack": "Python id", "profile_memory": "[memory]"}
    assert words[option] in (tmp_path / "run/profiler/rank-0-updates-3-3.json").read_text()


def test_a_run_that_is_resumed_inside_a_window_records_the_rest_of_it(make, traces):
    make(ProfilerCallback(wait=2, warmup=1, active=4), max_steps=5).train()
    assert [*traces()] == ["rank-0-updates-4-5.json"]
    make(ProfilerCallback(wait=2, warmup=1, active=4)).train(resume=True)
    assert [*traces()] == ["rank-0-updates-4-5.json", "rank-0-updates-6-7.json"]
    assert traces()["rank-0-updates-6-7.json"].count("step") == 2


def test_a_resume_behind_all_windows_records_nothing_and_says_so(make, traces, caplog):
    make(ProfilerCallback(wait=1, warmup=1, active=1), max_steps=5).train()
    make(ProfilerCallback(wait=1, warmup=1, active=1)).train(resume=True)
    assert [*traces()] == ["rank-0-updates-3-3.json"]
    assert "nothing is recorded in updates 6 to 12" in caplog.text


def test_a_new_run_removes_the_traces_of_the_one_before(make, traces):
    make(ProfilerCallback(wait=1, warmup=1, active=1)).train()
    make(ProfilerCallback(wait=2, warmup=1, active=1), overwrite=True).train()
    assert [*traces()] == ["rank-0-updates-4-4.json"]


def test_a_run_that_is_too_short_says_so_once(make, traces, caplog):
    make(ProfilerCallback(wait=10, warmup=2, active=3)).train()
    assert traces() == {}
    said = [each for each in caplog.messages if each.startswith("profiler:")]
    assert len(said) == 1
    assert "updates 1 to 12: the first recording begins behind update 12" in said[0]
    assert "Use another wait or repeat" in said[0]


def test_a_run_that_somebody_ends_early_says_so(make, caplog):
    class Stop(TrainerCallback):
        def should_stop_training(self, trainer):
            return trainer.step == 2

    make(ProfilerCallback(wait=2, warmup=1, active=1), Stop()).train()
    assert "the run ended before an update was recorded" in caplog.text


def test_a_run_that_fails_in_a_window_writes_what_it_has_and_stops(make, traces):
    class Fails(TrainerCallback):
        def on_backward_end(self, trainer):
            if trainer.step == 4:
                raise ValueError("no")

    with pytest.raises(CallbackError):
        make(ProfilerCallback(wait=2, warmup=1, active=5), Fails()).train()
    assert [*traces()] == ["rank-0-updates-4-4.json"]
    assert not is_on()


def test_memory_that_runs_out_on_a_cpu_leaves_nothing_on(make, traces, caplog):
    def loss_fn(model, batch):
        if batch.sum() == total:
            raise torch.OutOfMemoryError("out of memory")
        return model(batch).square().mean()

    trainer = make(
        ProfilerCallback(wait=0, warmup=1, active=9, memory_snapshot=True), loss_fn=loss_fn
    )
    torch.manual_seed(0)
    torch.nn.Linear(4, 1)
    total = torch.randn(6, 3, 4)[3].sum()
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert [*traces()] == ["rank-0-updates-2-3.json"]
    assert not is_on()
    assert caplog.text.count("there is no memory_snapshot on cpu") == 1


def test_two_of_them_are_refused(make):
    second = ProfilerCallback()
    second.state_key = "second"
    with pytest.raises(UsageError, match="another profiler is on"):
        make(ProfilerCallback(), second).train()
    make(ProfilerCallback(wait=1, warmup=1, active=1)).train()


def test_a_profiler_round_the_run_is_left_alone(make):
    with profile() as outer:
        with pytest.raises(UsageError, match="another profiler is on"):
            make(ProfilerCallback()).train()
        torch.ones(2) + 1
    assert "aten::add" in {event.name for event in outer.events()}


def test_a_trace_that_cannot_be_written_costs_the_run_nothing(make, tmp_path, caplog):
    class Removes(TrainerCallback):
        def on_epoch_start(self, trainer, epoch):
            if epoch == 0:
                (tmp_path / "run/profiler").rmdir()

    result = make(ProfilerCallback(wait=2, warmup=1, active=1), Removes()).train()
    assert result.status == "finished"
    assert result.switched_off == ("profiler",)
    assert "could not be written to" in caplog.text
    assert not is_on()


def test_a_run_that_writes_nowhere_is_refused(make):
    with pytest.raises(UsageError, match="needs an output directory"):
        make(ProfilerCallback(), output_dir=None).train()


def test_weights_are_those_of_a_run_without_it(make):
    alone = make(output_dir=None)
    beside = make(ProfilerCallback(wait=1, warmup=1, active=2))
    alone.train()
    beside.train()
    assert torch.equal(alone.model.weight, beside.model.weight)
