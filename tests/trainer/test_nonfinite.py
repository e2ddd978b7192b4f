"""NaN or Inf in the training loss, or in the gradient norm, never reaches `optimizer.step()`."""

import math

import pytest
import torch

from trainer import NonFiniteError
from trainer.losses import LossMeter
from trainer_callback import TrainerCallback

BAD = [math.nan, math.inf, -math.inf]


def spoil_loss(value, steps):
    """A loss that is `value` in the given updates (0-based)."""
    count = iter(range(10**6))

    def loss_fn(model, batch):
        loss = model(batch).square().mean()
        return loss + value if model.training and next(count) in steps else loss

    return loss_fn


class SpoilNorm(TrainerCallback):
    def __init__(self, value, step):
        self.value, self.step = value, step

    def on_backward_end(self, trainer):
        if trainer.step == self.step:
            next(trainer.model.parameters()).grad.view(-1)[0] = self.value


class Ask(TrainerCallback):
    """Wants statistics, as a monitor does, so that the norm is known."""

    def on_backward_end(self, trainer):
        trainer.gradient_stats()


def weights_are_finite(trainer):
    return all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("value", BAD)
def test_nan_or_inf_in_the_training_loss_stops_the_run(tiny, tmp_path, value):
    ends = []

    class End(TrainerCallback):
        def on_train_end(self, trainer, result):
            ends.append(result.status)

    trainer = tiny.trainer(tmp_path, loss_fn=spoil_loss(value, {7}), callbacks=[End()])
    with pytest.raises(NonFiniteError, match="epoch 1, update 8"):
        trainer.train()
    assert ends == ["failed"]
    assert weights_are_finite(trainer)
    state = tiny.newest_state(tmp_path)
    assert state["progress"]["step"] == 6
    assert all(t.isfinite().all() for t in state["model"].values())


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("way", ["clipping", "check_gradients", "monitor"])
def test_nan_or_inf_in_the_gradient_norm_stops_the_run(tiny, value, way):
    options = {"clipping": {"max_grad_norm": 1.0}, "check_gradients": {"check_gradients": True}}
    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        callbacks=[SpoilNorm(value, 3), *([Ask()] if way == "monitor" else [])],
        **options.get(way, {}),
    )
    with pytest.raises(NonFiniteError, match="epoch 0, update 4"):
        trainer.train()
    assert weights_are_finite(trainer)


def test_skip_counts_and_goes_on(tiny, caplog):
    seen = []

    class Count(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if skipped:
                seen.append(trainer.step)

    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        loss_fn=spoil_loss(math.nan, {2, 3, 8}),
        on_nonfinite="skip",
        callbacks=[Count()],
    )
    result = trainer.train()
    assert (result.status, seen) == ("finished", [3, 4, 9])
    assert weights_are_finite(trainer)
    assert math.isfinite(result.train_loss)


def test_skip_ends_after_10_in_a_row(tiny):
    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        loss_fn=spoil_loss(math.nan, range(4, 100)),
        on_nonfinite="skip",
    )
    with pytest.raises(NonFiniteError, match="10 updates in a row"):
        trainer.train()
    assert trainer.step == 13
    assert weights_are_finite(trainer)


def test_skip_counts_afresh_after_a_good_update(tiny):
    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        loss_fn=spoil_loss(math.nan, {*range(18)} - {9}),
        on_nonfinite="skip",
    )
    assert trainer.train().steps == 18


def test_a_nan_in_one_micro_batch_of_a_window_is_found(tiny):
    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        loss_fn=spoil_loss(math.nan, {1}),
        gradient_accumulation_steps=3,
    )
    with pytest.raises(NonFiniteError, match="update 1"):
        trainer.train()


def test_a_norm_that_is_not_finite_leaves_the_losses_of_its_update_out():
    meter = LossMeter()
    for value in (1.0, 2.0):
        meter.add(torch.tensor(value))
    assert meter.fetch(torch.tensor(3.0))
    meter.add(torch.tensor(7.0))
    assert not meter.fetch(torch.tensor(math.inf))
    assert meter.epoch_mean() == 1.5
