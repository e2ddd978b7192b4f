"""The fixtures that the kit brings to every author's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.testing import Recorder, TinyTrainer
from trainer.testing.compare import find_difference
from trainer_callback import HOOKS


def test_a_tiny_trainer_trains_and_writes_where_the_test_may(
    tiny_trainer: TinyTrainer, tmp_path: Path
) -> None:
    result = tiny_trainer(epochs=2, batches=3).train()
    assert (result.status, result.steps) == ("finished", 6)
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_two_tiny_trainers_end_in_the_same_weights(tiny_trainer: TinyTrainer) -> None:
    first, second = (tiny_trainer(epochs=1, output_dir=None) for _ in range(2))
    first.train(), second.train()
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_building_one_leaves_the_random_numbers_of_the_test_alone(
    tiny_trainer: TinyTrainer,
) -> None:
    before = torch.get_rng_state()
    tiny_trainer()
    assert torch.equal(before, torch.get_rng_state())


def test_the_recorder_keeps_hooks_in_order_with_their_arguments(
    tiny_trainer: TinyTrainer, recorder: Recorder
) -> None:
    tiny_trainer([recorder], epochs=1, batches=1, max_grad_norm=1.0).train()
    assert recorder.hooks == [
        "on_setup",
        "on_train_start",
        "on_epoch_start",
        "on_batch_start",
        "on_forward_end",
        "on_backward_end",
        "on_gradients_clipped",
        "on_step_end",
        "on_batch_end",
        "on_log",
        "on_validation_start",
        "on_validation_set_start",
        *["on_validation_batch_end"] * 2,
        "on_validation_set_end",
        "on_validation_end",
        "on_log",
        "on_epoch_end",
        "should_stop_training",
        "on_snapshot_save",
        "on_snapshot_saved",
        "on_train_end",
        "on_final_saved",
    ]
    assert recorder.of("on_train_start") == [{"resumed": False}]
    assert set(recorder.of("on_epoch_end")[0]) == {"epoch", "train_loss", "val_loss", "metrics"}
    assert [call.step for call in recorder.calls if call.hook == "on_step_end"] == [1]


def test_the_recorder_refuses_a_hook_that_does_not_exist(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="there is no hook 'on_epoch'"):
        recorder.of("on_epoch")


def test_the_recorder_implements_every_hook_of_a_run() -> None:
    hooks = set(HOOKS) - {"add_options", "make_callbacks", "offer_defaults"}
    assert hooks == set(HOOKS) & set(vars(Recorder))


def test_loading_the_pytest_plugin_imports_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys, trainer.testing.fixtures\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in\n"
        "    ('trainer', 'trainer_callback', 'torch', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['trainer', 'trainer.testing', 'trainer.testing.fixtures']"


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "state.a[1] is 3 instead of 2"),
        ({"a": 1}, {}, "state.a is missing and was 1"),
        ({}, {"a": 1}, "state.a is 1 and was not there"),
        ((1,), [1], "state is [1] instead of (1,)"),
        ([1, 2], [1], "state has 1 items instead of 2"),
        (1, True, "state is True instead of 1"),
        (torch.tensor(1.0), torch.tensor(2.0), "state is 2.0 (torch.float32 tensor ()) instead "),
        (torch.zeros(2), torch.ones(2), "state has other values (torch.float32 tensor (2,))"),
        (torch.zeros(2), torch.zeros(3), "state is another torch.float32 tensor (3,) instead of"),
    ],
)
def test_a_difference_is_named_by_its_path(expected: object, found: object, words: str) -> None:
    difference = find_difference(expected, found, "state")
    assert difference is not None
    assert difference.startswith(words)


def test_nan_is_equal_to_nan() -> None:
    nan = float("nan")
    one, other = ({"a": nan, "b": torch.tensor(nan)} for _ in range(2))
    assert find_difference(one, other, "state") is None
