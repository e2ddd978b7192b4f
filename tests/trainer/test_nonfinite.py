"""NaN or Inf in the training loss, or in the gradient norm, never reaches `optimizer.step()`."""

import json
import math

import pytest
import torch

from trainer import NonFiniteError
from trainer.step.buffers import KeptBuffers
from trainer.step.loss_meter import LossMeter
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


def test_skipped_updates_are_logged_over_resumes(tiny, tmp_path):
    place = tmp_path / "run"

    def make(spoiled, **options):
        loss_fn = spoil_loss(math.nan, spoiled)
        return tiny.trainer(place, loss_fn=loss_fn, on_nonfinite="skip", log_interval=1, **options)

    make({2}, max_steps=4).train()
    trainer = make({1})
    trainer.train(resume=True)
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line.get("skipped_updates") for line in lines if "loss" in line}
    assert [seen.get(step) for step in (2, 4, 5, 7)] == [None, 1.0, 1.0, 2.0]
    assert trainer.metrics["skipped_updates"] == 2.0


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
    assert meter.epoch_means() == {"": 1.5}


class Spoil(TrainerCallback):
    """Makes one entry of a gradient bad in a hook of one update."""

    def __init__(self, value, step, hook="on_backward_end", rank=0):
        self.value, self.step, self.rank = value, step, rank
        setattr(self, hook, self.spoil)

    def on_backward_end(self, trainer): ...

    def on_gradients_clipped(self, trainer): ...

    def spoil(self, trainer):
        if trainer.step == self.step and trainer.rank == self.rank:
            trainer.model[0].weight.grad.data.view(-1)[3] = self.value


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("at", [2, "last"])
def test_a_bad_gradient_with_a_finite_loss_never_reaches_the_weights(
    tiny, tmp_path, value, precision, steps, at
):
    updates = 2 * math.ceil(6 / steps)
    at = updates - 1 if at == "last" else at
    states = []

    class Keep(TrainerCallback):
        def on_batch_start(self, trainer):
            states.append([p.detach().clone() for p in trainer.model.parameters()])

    trainer = tiny.trainer(
        tmp_path,
        precision=precision,
        gradient_accumulation_steps=steps,
        snapshot_interval=1,
        epochs=2,
        callbacks=[Spoil(value, at), Keep()],
    )
    place = rf"gradient.* 0\.weight\) at epoch \d, update {at + 1}\."
    with pytest.raises(NonFiniteError, match=place):
        trainer.train()
    assert trainer.step == at
    assert all(map(torch.equal, states[-1], trainer.model.parameters()))
    newest = tiny.newest_state(tmp_path)
    assert newest["progress"]["step"] == at
    assert all(bool(t.isfinite().all()) for t in newest["model"].values())


@pytest.mark.parametrize("hook", ["on_backward_end", "on_gradients_clipped"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_checked_depends_neither_on_clipping_nor_on_who_asks(tiny, hook, clip, ask, policy):
    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        max_grad_norm=clip,
        on_nonfinite=policy,
        callbacks=[*([Ask()] if ask else []), Spoil(math.inf, 4, hook)],
    )
    if (hook == "on_gradients_clipped" and clip is None) or policy == "skip":
        assert trainer.train().steps == 18
    else:
        with pytest.raises(NonFiniteError, match="epoch 0, update 5"):
            trainer.train()
    assert weights_are_finite(trainer)


def test_an_overflow_in_fp16_lowers_the_scale_and_a_gradient_that_stays_bad_stops_the_run(tiny):
    class Always(TrainerCallback):
        def on_backward_end(self, trainer):
            if trainer.step >= 2:
                trainer.model[0].weight.grad.data.view(-1)[3] = math.nan

    scales = []

    class Scales(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            scales.append((trainer.loss_scale, skipped))

    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        precision="fp16",
        epochs=9,
        callbacks=[Always(), Scales()],
    )
    with pytest.raises(NonFiniteError, match=r"norm is not finite \(nan.* 0\.weight\)"):
        trainer.train()
    lowest = [(2.0**-power, True) for power in range(17)]
    assert scales[-17:] == lowest
    assert trainer.step < 40
    assert weights_are_finite(trainer)


def test_check_gradients_can_be_left_out(tiny):
    trainer = tiny.trainer(
        None, snapshot_interval=None, check_gradients=False, callbacks=[Spoil(math.inf, 17)]
    )
    with pytest.raises(NonFiniteError, match="at the end of the run"):
        trainer.train()
    assert trainer.step == 18
    assert not weights_are_finite(trainer)


def test_the_buffers_of_a_skipped_update_are_those_before_it(tiny):
    buffers = []

    class Keep(TrainerCallback):
        def on_batch_start(self, trainer):
            buffers.append({n: b.clone() for n, b in trainer.model.named_buffers()})

    def loss_fn(model, batch):
        bad = model.training and trainer.step == 3
        return model(batch * math.nan if bad else batch).square().mean()

    trainer = tiny.trainer(
        None,
        snapshot_interval=None,
        loss_fn=loss_fn,
        on_nonfinite="skip",
        callbacks=[Keep()],
        gradient_accumulation_steps=2,
    )
    result = trainer.train()
    before, after = buffers[6], buffers[8]
    assert before.keys() == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert math.isfinite(result.val_loss)


def test_a_buffer_that_is_replaced_is_put_back_and_one_that_is_shared_is_left_alone():
    model = torch.nn.Module()
    model.register_buffer("mean", torch.ones(2))
    model.register_buffer("mask", torch.ones(1).expand(3))
    model.register_buffer("none", None)
    kept = KeptBuffers(model)
    for _ in range(2):
        kept.keep()
        model.mean = torch.full((2,), math.nan)
        kept.restore()
        assert model.mean.tolist() == [1, 1]
        model.mean.add_(math.nan)
        kept.restore()
        assert model.mean.tolist() == [1, 1]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_bad_gradient_in_one_of_two_processes_is_bad_in_both(tiny, policy):
    def work(rank):
        trainer = tiny.trainer(
            None,
            snapshot_interval=None,
            on_nonfinite=policy,
            epochs=2,
            callbacks=[Spoil(math.inf, 2, rank=1)],
        )
        if policy == "stop":
            with pytest.raises(NonFiniteError, match="update 3"):
                trainer.train()
            assert trainer.step == 2
        else:
            assert trainer.train().status == "finished"
        assert weights_are_finite(trainer)
        return 0

    assert tiny.run_ranks(work) == [0, 0]
