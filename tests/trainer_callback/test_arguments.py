"""What a callback is handed it cannot use to change the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer import Trainer
from trainer.writers.metrics_file import read_logged
from trainer_callback import TrainerCallback, hookimpl
from trainer_callback.calls.manager import CallbackManager


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


class Reader(TrainerCallback):
    """Keeps the tensors that it is handed, as they are handed to it."""

    def __init__(self, state_key: str) -> None:
        self.state_key = state_key
        self.seen: list[tuple[str, float]] = []

    def on_forward_end(self, loss):
        self.seen.append(("on_forward_end", float(loss)))

    def on_batch_end(self, loss):
        self.seen.append(("on_batch_end", float(loss)))

    def on_gradients_clipped(self, total_norm, clipped):
        self.seen.append(("on_gradients_clipped", float(total_norm)))
        self.seen.append(("clipped", float(clipped)))


class Wrapping(TrainerCallback):
    """Reads the loss behind the others, and writes to it before them."""

    @hookimpl(wrapper=True)
    def on_forward_end(self, loss):
        before = float(loss)
        loss.fill_(7.0)
        yield
        assert float(loss) == 7.0
        self.before = before


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_callback_sees_what_another_did_to_a_tensor(
    make_trainer: Callable[..., Trainer], place: int
) -> None:
    alone = Reader("alone")
    make_trainer(alone, writes=False).train()
    readers = [Reader("one"), Reader("two")]
    callbacks: list[Any] = [*readers]
    callbacks.insert(place, Vandal())
    make_trainer(*callbacks, Wrapping(), writes=False).train()
    assert alone.seen == readers[0].seen == readers[1].seen


def test_a_tensor_that_one_callback_asks_for_is_not_copied() -> None:
    given = torch.ones(())
    kept = []

    class Keeps(TrainerCallback):
        def on_forward_end(self, loss):
            kept.append(loss)

    class Other(TrainerCallback):
        def on_forward_end(self):
            pass

    for count in (1, 2):
        keepers = [type(f"Keeps{i}", (Keeps,), {})() for i in range(count)]
        manager = CallbackManager([*keepers, Other()])
        manager.hook.on_forward_end(trainer=None, loss=given, outputs=None)
    assert [each is given for each in kept] == [True, False, False]
