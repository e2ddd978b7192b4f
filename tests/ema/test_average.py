"""What the average is, and which updates count."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from trainer_callback import TrainerCallback
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

    trainer = make(Reference(swap_at_end=False), EMACallback(decay=0.9, warmup=False))
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
    assert "cannot average anything in a run of 10 updates" in caplog.text


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
        Means(swap_at_end=False),
        EMACallback(decay=0.5, warmup=False, use_buffers=use_buffers),
        model=model,
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
    ("options", "advice"),
    [
        ({"decay": 1.0}, "Use decay=0.999"),
        ({"decay": -0.1}, "Use decay=0.999"),
        ({"decay": float("nan")}, "Use decay=0.999"),
        ({"start_step": -1}, "Use start_step=0"),
        ({"every": 0}, "Use every=1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_one_that_works(options, advice):
    with pytest.raises(ValueError, match=advice):
        EMACallback(**options)


def test_the_decay_warms_up_so_that_a_short_run_forgets_its_first_weights(make, weights):
    trainer = make(EMACallback(), weights)
    trainer.train()
    first, last = weights.trained[0], weights.trained[-1]
    left = (trainer.model.weight - last).norm() / (first - last).norm()
    assert left < 0.5


class Masked(nn.Linear):
    """Has a mask of -inf, as attention has, as a parameter or a buffer, and other odd entries."""

    def __init__(self, *, trained):
        super().__init__(4, 1)
        mask = torch.tensor([0.0, -torch.inf, torch.inf, torch.nan])
        self.mask = nn.Parameter(mask) if trained else None
        self.register_buffer("other", None if trained else mask)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("on", torch.tensor(True))

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_entries_that_are_not_finite_stay_what_they_are(make, trained, dtype):
    model = Masked(trained=trained)
    for tensor in (model.mask, model.other):
        if tensor is not None:
            tensor.data = tensor.data.to(dtype)
    result = make(EMACallback(use_buffers=True), model=model).train()
    found = model.mask if trained else model.other
    assert str(found.detach().tolist()) == "[0.0, -inf, inf, nan]"
    assert (int(model.count), bool(model.on)) == (7, True)
    assert model.weight.isfinite().all()
    assert math.isfinite(result.val_loss)


def test_a_buffer_that_becomes_finite_again_is_averaged_again(make):
    class Open(TrainerCallback):
        def on_batch_start(self, trainer, batch_idx):
            trainer.model.other = torch.full((4,), -torch.inf if trainer.step < 3 else 2.0)

    model = Masked(trained=False)
    make(Open(), EMACallback(use_buffers=True), model=model).train()
    assert model.other.tolist() == [2.0] * 4


def test_a_buffer_that_grows_starts_its_average_again(make):
    class Grow(TrainerCallback):
        def on_batch_start(self, trainer, batch_idx):
            trainer.model.other = torch.full((1 + trainer.step,), float(trainer.step))

    model = Masked(trained=False)
    make(Grow(), EMACallback(use_buffers=True), model=model, epochs=1).train()
    assert model.other.tolist() == [4.0] * 5


def test_complex_weights_are_averaged(make):
    seen = []

    class Complex(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.phase = nn.Parameter(torch.ones(1, dtype=torch.complex64))

        def forward(self, x):
            return super().forward(x) * self.phase.real + self.phase.imag

    class Look(TrainerCallback):
        def on_step_end(self, trainer):
            seen.append(trainer.model.phase.detach().clone())

    model = Complex()
    make(Look(), EMACallback(decay=0.5, warmup=False), model=model).train()
    average = seen[0]
    for phase in seen[1:]:
        average = (average + phase) / 2
    assert_close(model.phase.detach(), average)


def test_a_weight_that_is_frozen_or_added_on_the_way_keeps_its_own(make):
    class Change(TrainerCallback):
        def on_epoch_start(self, trainer, epoch):
            if epoch == 1:
                trainer.model.bias.requires_grad_(False)
                trainer.model.register_parameter("added", nn.Parameter(torch.full((2,), 5.0)))

    model = nn.Linear(4, 1)
    make(Change(), EMACallback(), model=model).train()
    assert model.added.tolist() == [5.0, 5.0]
    assert model.bias.isfinite().all()


def test_a_sparse_buffer_is_left_alone(make):
    model = nn.Linear(4, 1)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    assert make(EMACallback(use_buffers=True), model=model).train().status == "finished"


def test_a_float8_buffer_is_averaged(make):
    model = nn.Linear(4, 1)
    model.register_buffer("scale", torch.ones(4).to(torch.float8_e4m3fn))
    make(EMACallback(use_buffers=True), model=model).train()
    assert model.scale.float().tolist() == [1.0] * 4


def test_one_averaging_is_no_average(make, weights, caplog):
    trainer = make(EMACallback(every=1000), weights)
    trainer.train()
    assert torch.equal(trainer.model.weight, weights.trained[-1])
    assert "cannot average anything in a run of 10 updates" in caplog.text


@pytest.mark.parametrize("options", [{"start_step": 6}, {"start_step": 5}, {"every": 6}])
def test_what_cannot_start_before_the_end_of_the_run_is_told_at_the_start(make, options, caplog):
    make(EMACallback(**options), max_steps=5).train()
    assert "cannot average anything in a run of 5 updates" in caplog.text


def test_an_average_that_nothing_uses_is_told(make, caplog):
    make(EMACallback(use_for_validation=False, swap_at_end=False)).train()
    assert caplog.text.count("nothing uses the average") == 1


def test_a_run_of_one_update_is_told_once_that_it_is_too_short(make, caplog):
    make(EMACallback(), max_steps=1).train()
    (text,) = [r.getMessage() for r in caplog.records if "averag" in r.getMessage()]
    assert "of 1 updates" in text
    assert "Use lower" not in text
