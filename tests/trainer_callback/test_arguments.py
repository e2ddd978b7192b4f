"""What a callback is handed it cannot use to change the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer import Trainer
from trainer.metrics_file import read_logged
from trainer_callback import TrainerCallback


class Vandal(TrainerCallback):
    """Changes whatever it is handed."""

    def on_forward_end(self, loss):
        loss.zero_()

    def on_batch_end(self, loss):
        loss.fill_(float("nan"))

    def on_gradients_clipped(self, total_norm, clipped):
        total_norm.fill_(float("inf"))
        clipped.fill_(False)

    def on_validation_end(self, metrics):
        metrics.clear()

    def on_epoch_end(self, metrics):
        metrics["val_loss"] = -1.0

    def on_log(self, metrics):
        metrics.clear()

    def on_snapshot_load(self, checkpoint):
        for tensor in checkpoint["model"].values():
            tensor.zero_()
        for state in checkpoint["optimizer"]["state"].values():
            state["momentum_buffer"].fill_(100.0)
        checkpoint["progress"]["history"].clear()
        checkpoint["callback_state"].clear()
        with pytest.raises(TypeError):
            checkpoint["epoch"] = 7

    def on_train_end(self, result):
        result.history.clear()
        result.callback_costs.clear()


def train(make_trainer: Callable[..., Trainer], *callbacks: object, **options: Any) -> Any:
    """A run of two updates and its resume to the end; returns the second trainer and result."""
    for resume in (False, True):
        trainer = make_trainer(*callbacks, max_steps=4 if resume else 1, **options)
        trainer.optimizer.param_groups[0]["momentum"] = 0.9
        result = trainer.train(resume)
    return trainer, result


def test_a_callback_that_changes_what_it_is_handed_changes_nothing(
    make_trainer: Callable[..., Trainer], tmp_path: Any, recorder: Any
) -> None:
    with_vandal, spoilt = train(make_trainer, Vandal(), recorder(), output_dir=tmp_path / "a")
    without, sound = train(make_trainer, recorder(), output_dir=tmp_path / "b")
    for ours, theirs in zip(
        with_vandal.model.parameters(), without.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert spoilt.history == sound.history
    assert spoilt.val_loss == sound.val_loss
    assert spoilt.callback_costs
    metrics = [read_logged(tmp_path / name / "metrics.jsonl") for name in "ab"]
    assert metrics[0] == metrics[1]


def test_a_neighbour_does_not_see_what_another_callback_did_to_its_copies(
    make_trainer: Callable[..., Trainer],
) -> None:
    seen: list[Any] = []

    class Reads(TrainerCallback):
        def on_log(self, metrics):
            seen.append(dict(metrics))

        def on_snapshot_load(self, checkpoint):
            seen.append(checkpoint["callback_state"]["Reads"])

        def on_snapshot_save(self):
            return {"kept": 1}

        def on_train_end(self, result):
            seen.append(list(result.history))

    train(make_trainer, Vandal(), Reads())
    assert {"kept": 1} in seen
    assert all(seen)


def test_the_metrics_of_the_trainer_are_read_only(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(TypeError):
        make_trainer(writes=False).metrics["loss"] = 0.0


def test_a_checkpoint_is_copied_only_where_it_is_read() -> None:
    from trainer_callback.arguments import CheckpointView

    class Uncopyable:
        def __deepcopy__(self, memo):
            raise RuntimeError("copied")

    view = CheckpointView({"model": Uncopyable(), "callback_state": {"A": {"n": 1}}})
    view["callback_state"]["A"]["n"] = 2
    assert view.get("callback_state", {})["A"] == {"n": 2}
    assert set(view) == {"model", "callback_state"}
    assert len(view) == 2
