"""What the average is, and which updates count."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from trainer_ema import EMACallback


def test_the_finished_model_has_the_average_of_the_weights(make, weights, average_of):
    trainer = make(EMACallback(decay=0.9), weights)
    trainer.train()
    assert_close(trainer.model.weight.detach(), average_of(weights.trained, 0.9))


def test_it_equals_the_averaged_model_of_torch(make):
    reference = []

    class Reference(EMACallback):
        state_key = "reference"

        def on_step_end(self, trainer, skipped):
            if not reference:
                update = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
                averaged = torch.optim.swa_utils.AveragedModel(trainer.model, multi_avg_fn=update)
                reference.append(averaged)
            reference[0].update_parameters(trainer.model)

    trainer = make(Reference(swap_at_end=False), EMACallback(decay=0.9))
    trainer.train()
    assert torch.equal(trainer.model.weight, reference[0].module.weight)


def test_start_step_leaves_out_the_updates_before_it(make, weights, average_of):
    trainer = make(EMACallback(decay=0.9, start_step=4), weights)
    trainer.train()
    assert_close(trainer.model.weight.detach(), average_of(weights.trained[4:], 0.9))


def test_every_takes_one_update_in_so_many(make, weights, average_of):
    trainer = make(EMACallback(decay=0.9, every=3), weights)
    trainer.train()
    assert_close(trainer.model.weight.detach(), average_of(weights.trained[::3], 0.9))


def test_skipped_updates_do_not_count(make, weights, average_of):
    calls = iter(range(1000))

    def loss_fn(model, batch):
        loss = (model(batch) - 1).square().mean()
        return loss * float("nan") if model.training and next(calls) == 1 else loss

    trainer = make(EMACallback(decay=0.9, every=2), weights, loss_fn=loss_fn, on_nonfinite="skip")
    trainer.train()
    assert len(weights.trained) == 9
    assert_close(trainer.model.weight.detach(), average_of(weights.trained[::2], 0.9))


def test_a_run_that_is_shorter_than_start_step_keeps_its_weights(make, weights, caplog):
    trainer = make(EMACallback(start_step=100), weights)
    trainer.train()
    assert torch.equal(trainer.model.weight, weights.trained[-1])
    assert "--ema_start_step" in caplog.text


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_tied_weights_have_one_average_and_stay_tied(make, tmp_path):
    callback = EMACallback(decay=0.5)
    trainer = make(callback, model=Tied(), output_dir=tmp_path, snapshot_epochs=True)
    trainer.train()
    assert trainer.model.second.weight is trainer.model.first.weight
    snapshot = tmp_path / "snapshots" / "step-00000010" / "state.pt"
    state = torch.load(snapshot, weights_only=True)["callback_state"]["EMACallback"]
    assert list(state["averages"]) == ["first.weight"]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_buffers_are_averaged_only_when_asked_for(make, use_buffers):
    means = []

    class Means(EMACallback):
        state_key = "means"

        def on_step_end(self, trainer, skipped):
            means.append(trainer.model[0].running_mean.clone())

    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    trainer = make(
        Means(swap_at_end=False), EMACallback(decay=0.5, use_buffers=use_buffers), model=model
    )
    trainer.train()
    average = means[0].double()
    for mean in means[1:]:
        average = (average + mean.double()) / 2
    expected = average.float() if use_buffers else means[-1]
    assert_close(model[0].running_mean, expected)
    assert model[0].num_batches_tracked == 10


def test_narrow_weights_are_averaged_in_float32(make, weights, average_of):
    model = nn.Linear(4, 1).bfloat16()

    def loss_fn(model, batch):
        return (model(batch.bfloat16()).float() - 1).square().mean()

    trainer = make(EMACallback(decay=0.9), weights, model=model, loss_fn=loss_fn)
    trainer.train()
    assert torch.equal(model.weight, average_of(weights.trained, 0.9).bfloat16())


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"decay": 1.0}, "--ema_decay 0.999"),
        ({"decay": -0.1}, "--ema_decay 0.999"),
        ({"decay": float("nan")}, "--ema_decay 0.999"),
        ({"start_step": -1}, "--ema_start_step 0"),
        ({"every": 0}, "--ema_every 1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_one_that_works(options, flag):
    with pytest.raises(ValueError, match=flag):
        EMACallback(**options)
