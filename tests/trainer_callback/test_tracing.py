"""`trace_hooks`: a line for each call."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from trainer_callback import PluginError, StopRequest, TrainerCallback, hookimpl

TIME = re.compile(r"\d+\.\d{3} ms")


class Reader(TrainerCallback):
    def on_batch_end(self, loss: Any, batch_idx: int) -> None:
        pass

    def on_epoch_end(self, trainer: Any, epoch: int) -> None:
        trainer.log({"gap": 1.0})

    def should_stop_training(self, trainer: Any) -> Any:
        return StopRequest("enough") if trainer.step == 3 else None

    def on_log(self, metrics: Any) -> None:
        pass


class Other(TrainerCallback):
    critical = False

    def on_epoch_end(self, *, metrics: Any) -> None:
        raise ValueError("too bad")


def read_trace(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What stands on stderr, without the times."""
    return [TIME.sub("T", line) for line in capsys.readouterr().err.splitlines()]


def test_a_call_is_a_line_with_arguments_receivers_times_and_answers(
    make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(Reader(), Other(), writes=False, trace_hooks="on_[be]*").train()
    lines = read_trace(capsys)
    assert "on_batch_end(batch_idx=0, loss=float32[], outputs=None) T: Reader T" in lines
    (first, *_) = (line for line in lines if line.startswith("on_epoch_end(epoch=0"))
    assert "metrics={" in first
    assert "T: Reader T, Other T raised ValueError: too bad" in first
    (second,) = (line for line in lines if line.startswith("on_epoch_end(epoch=1"))
    assert "T: Reader T" in second
    assert "Other" not in second
    assert not any(line.startswith("on_log") for line in lines)


def test_answers_are_shown_and_calls_inside_a_call_come_before_it(
    make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(Reader(), writes=False, trace_hooks=True).train()
    lines = read_trace(capsys)
    answer = "should_stop_training() T: Reader T -> StopRequest(reason='enough', detail='')"
    assert answer in lines
    logged = next(i for i, line in enumerate(lines) if line.startswith("on_log(metrics={gap: 1}"))
    assert any(line.startswith("on_epoch_end(epoch=0") for line in lines[logged:])


def test_the_result_is_that_of_a_run_without(make_trainer: Any) -> None:
    weights = []
    for trace in (False, True):
        trainer = make_trainer(Reader(), trace_hooks=trace, overwrite=True)
        trainer.train()
        weights.append(trainer.model.weight.detach().clone())
    assert torch.equal(*weights)


def test_a_wrapper_stays_one(make_trainer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Around(TrainerCallback):
        @hookimpl(wrapper=True)
        def should_stop_training(self) -> Any:
            return (yield)

    trainer = make_trainer(Around(), Reader(), writes=False, trace_hooks="should_*")
    assert trainer.train().stop_reason == "enough"
    assert "should_stop_training() T: Reader T" in read_trace(capsys)


@pytest.mark.parametrize(
    ("glob", "words"),
    [
        ("on_epoch_endd", "trace_hooks='on_epoch_endd' matches no hook. Did you mean 'on_epoch_e"),
        ("add_options", "matches no hook."),
        (3, "trace_hooks must be a pattern of names of hooks, got 3. Use trace_hooks='on_epoch_*'"),
    ],
)
def test_a_pattern_that_matches_no_hook_is_refused(
    make_trainer: Any, glob: Any, words: str
) -> None:
    with pytest.raises(PluginError, match=re.escape(words)):
        make_trainer(Reader(), trace_hooks=glob)


def test_a_hook_without_a_call_is_in_the_result_with_the_reason(make_trainer: Any) -> None:
    class Hopeful(TrainerCallback):
        def on_gradients_clipped(self) -> None:
            pass

        def on_snapshot_save(self) -> None:
            pass

        def on_snapshot_search(self) -> None:
            pass

        def on_log_text(self) -> None:
            pass

        def on_epoch_end(self) -> None:
            pass

        def on_train_end(self) -> None:
            pass

    result = make_trainer(Hopeful(), writes=False, max_grad_norm=None).train()
    assert result.uncalled_hooks["Hopeful"] == {
        "on_gradients_clipped": "nothing is clipped: max_grad_norm is not set",
        "on_snapshot_save": "no snapshot is written without an output_dir",
        "on_snapshot_search": "no resume was asked for",
        "on_log_text": "nobody logged a text",
    }
