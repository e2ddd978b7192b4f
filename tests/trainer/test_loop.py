"""The loop: every hook in its place, the ends of a run, the numbers."""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig, default_loss
from trainer_callback import HOOKS, CallbackError, StopRequest, TrainerCallback

SHORT = {
    "on_train_start": "T(",
    "on_epoch_start": "E(",
    "on_batch_start": "b(",
    "on_forward_end": "f",
    "on_backward_end": "B",
    "on_gradients_clipped": "c",
    "on_step_end": "s",
    "on_batch_end": "b)",
    "on_validation_start": "V(",
    "on_validation_end": "V)",
    "on_epoch_end": "E)",
    "on_log": "l",
    "should_stop_training": "?",
    "on_snapshot_save": "S",
    "on_snapshot_saved": "S!",
    "on_snapshot_load": "L",
    "on_exception": "X",
    "on_train_end": "T)",
}


def make_recorder():
    """A callback that implements every hook and notes its calls in one list."""

    def make_hook(name):
        def hook(self, trainer):
            self.calls.append(SHORT[name])

        return hook

    hooks = {name: make_hook(name) for name in HOOKS if name in SHORT}
    recorder = type("Recorder", (TrainerCallback,), hooks)()
    recorder.calls = []
    return recorder


def make_trainer(batches=4, val=False, callbacks=(), loss_fn=None, **config):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        [torch.ones(2, 4) * (i + 1) for i in range(batches)],
        [torch.ones(2, 4)] if val else None,
        loss_fn=loss_fn or (lambda model, batch: model(batch).square().mean()),
        config=TrainerConfig(**{"epochs": 2, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


@pytest.mark.any_loop
def test_every_hook_in_order_with_accumulation_clipping_and_validation(tmp_path):
    recorder = make_recorder()
    make_trainer(
        batches=5,
        val=True,
        callbacks=[recorder],
        epochs=1,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        eval_interval=2,
        log_interval=2,
        snapshot_interval=2,
        snapshot_sync=True,
        output_dir=tmp_path / "run",
    ).train()
    first = "b( f b)"
    update = "b( f B c s b)"
    assert " ".join(recorder.calls) == " ".join(
        [
            *("T(", "E("),
            *(first, update, "?"),
            *(first, update, "l", "V(", "V)", "l", "?", "S"),
            *(update, "V(", "V)", "l", "E)", "?", "S!", "S"),
            *("S!", "T)"),
        ]
    )


@pytest.mark.any_loop
def test_every_hook_of_a_skipped_update_and_of_a_failed_run():
    recorder = make_recorder()

    def loss_fn(model, batch):
        return model(batch).square().mean() * (math.nan if batch[0, 0] in (2, 3) else 1)

    trainer = make_trainer(callbacks=[recorder], loss_fn=loss_fn, on_nonfinite="skip", epochs=1)
    trainer.train()
    assert " ".join(recorder.calls) == "T( E( " + "b( f B s b) ? " * 3 + "b( f B s b) l E) ? T)"
    recorder = make_recorder()
    trainer = make_trainer(callbacks=[recorder], loss_fn=loss_fn, epochs=1)
    with pytest.raises(RuntimeError):
        trainer.train()
    assert " ".join(recorder.calls) == "T( E( b( f B s b) ? b( f B X T)"


GRAMMAR = re.compile(
    r"T\( L?(E\( (b\( f (B (c )?s )?b\) l? ?\?? ?)*(V\( V\) l? ?)?(l )?(E\) \?? ?)?)*(X )?T\) "
)


@pytest.mark.any_loop
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("val", [False, True])
def test_every_run_follows_the_grammar(steps, clip, val):
    recorder = make_recorder()
    make_trainer(
        batches=5,
        callbacks=[recorder],
        val=val,
        gradient_accumulation_steps=steps,
        max_grad_norm=clip,
    ).train()
    assert GRAMMAR.fullmatch(" ".join(recorder.calls) + " ")
    counts = {name: recorder.calls.count(name) for name in ("E(", "b(", "s", "E)", "c")}
    updates = 2 * math.ceil(5 / steps)
    clipped = updates if clip else 0
    assert counts == {"E(": 2, "b(": 10, "s": updates, "E)": 2, "c": clipped}


@pytest.mark.parametrize("max_steps", [1, 3, 4, 6])
def test_max_steps_ends_the_run_there(max_steps):
    result = make_trainer(max_steps=max_steps).train()
    assert (result.status, result.stop_reason, result.steps) == ("finished", "max_steps", max_steps)


def test_the_snapshot_at_the_last_of_max_steps_is_known_before_the_backward_pass(tmp_path):
    due = []

    class Look(TrainerCallback):
        def on_batch_start(self, trainer):
            due.append(trainer.snapshot_due)

    make_trainer(callbacks=[Look()], max_steps=3, output_dir=tmp_path).train()
    assert due == [False, False, True]


def test_max_time_ends_the_run():
    result = make_trainer(max_time=1e-9).train()
    assert (result.status, result.stop_reason, result.steps) == ("finished", "max_time", 1)


@pytest.mark.parametrize(("min_epochs", "steps"), [(0, 1), (1, 4), (2, 8)])
def test_no_callback_stops_a_run_before_min_epochs(min_epochs, steps):
    class Stopper(TrainerCallback):
        def should_stop_training(self, trainer):
            return StopRequest("enough", "I have seen enough.")

    result = make_trainer(callbacks=[Stopper()], min_epochs=min_epochs, epochs=5).train()
    assert (result.status, result.steps) == ("stopped", steps)
    assert (result.stop_reason, result.stopped_by) == ("enough", "Stopper")


def test_train_loss_is_the_mean_of_the_batches_and_val_loss_that_of_the_items():
    losses = iter([1.0, 2.0, 4.0])

    def loss_fn(model, batch):
        wanted = next(losses) if model.training else float(batch[0, 0])
        return model(batch).sum() * 0 + wanted

    trainer = make_trainer(batches=3, loss_fn=loss_fn, epochs=1)
    trainer = Trainer(
        trainer.model,
        trainer.optimizer,
        [torch.ones(2, 4)] * 3,
        [torch.full((3, 4), 1.0), torch.full((1, 4), 5.0)],
        loss_fn=loss_fn,
        config=trainer.config,
        discover=False,
    )
    result = trainer.train()
    assert result.train_loss == 7 / 3
    assert result.val_loss == 2.0


def test_a_short_window_weighs_its_batches_as_much_as_a_full_one_weighs_its_own():
    seen = []

    class Look(TrainerCallback):
        def on_backward_end(self, trainer):
            seen.append(trainer.model.weight.grad.clone())

    loss_fn = lambda model, batch: model(batch).sum()  # noqa: E731
    make_trainer(
        batches=3, callbacks=[Look()], loss_fn=loss_fn, epochs=1, gradient_accumulation_steps=2
    ).train()
    assert torch.equal(seen[0], torch.full((1, 4), 2 * (1 + 2) / 2))
    assert torch.equal(seen[1], torch.full((1, 4), 2 * 3.0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_forward_pass_runs_in_the_precision_that_was_asked_for(precision):
    kinds = set()

    def loss_fn(model, batch):
        output = model(batch)
        kinds.add(output.dtype)
        return output.float().square().mean()

    trainer = make_trainer(precision=precision, loss_fn=loss_fn)
    before = trainer.model.weight.detach().clone()
    assert trainer.train().status == "finished"
    assert kinds == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert trainer.model.weight.dtype == torch.float32
    assert not torch.equal(before, trainer.model.weight)


def test_a_gradient_that_overflows_fp16_skips_the_update_until_the_scale_fits():
    skips, rates = [], []

    class Look(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            skips.append(skipped)
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(
        model,
        optimizer,
        [torch.full((2, 4), 8.0)] * 6,  # 8 x the first scale of 65,536 is infinite in fp16
        loss_fn=lambda model, batch: model(batch).float().mean(),
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        config=TrainerConfig(epochs=1, precision="fp16"),
        callbacks=[Look()],
        discover=False,
    )
    trainer.train()
    assert skips[0]
    assert not skips[-1]
    assert skips == sorted(skips, reverse=True)
    assert bool(model.weight.isfinite().all())
    assert rates[-1] == 0.5 ** (len(skips) - sum(skips))  # no step of the schedule for those


@dataclass
class Output:
    loss: torch.Tensor


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda x: x.sum(), torch.ones(2)),
        (lambda x, y: (x * y).sum(), (torch.ones(2), torch.ones(2))),
        (lambda x, y: (x * y).sum(), [torch.ones(2), torch.ones(2)]),
        (lambda x, y: (x * y).sum(), {"y": torch.ones(2), "x": torch.ones(2)}),
        (lambda x: Output(x.sum()), torch.ones(2)),
    ],
)
def test_default_loss_takes_tensors_tuples_dicts_and_outputs_with_a_loss(make, batch):
    class Model(nn.Module):
        def forward(self, *args, **kwargs):
            return make(*args, **kwargs)

    assert float(default_loss(Model(), batch)) == 2.0


def test_default_loss_refuses_what_is_no_loss():
    with pytest.raises(TypeError, match=r"a Tensor of shape \(2, 1\), which is no loss"):
        default_loss(nn.Linear(4, 1), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": True}, "epochs must be an integer"),
        ({"epochs": 1.5}, "epochs must be an integer"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"max_time": math.nan}, "max_time must be a finite number above 0, got nan"),
        ({"max_time": "1s"}, "max_time must be a finite number above 0, got '1s'"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be a finite number above 0"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, tf32, bf16, fp16, got 'fp8'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, skip"),
        ({"snapshot_interval": 5}, "snapshots need a place"),
        (
            {"epoch": 5},
            "TrainerConfig has no 'epoch'. It has check_gradients, checkpoint_activations",
        ),
        ({"early_stop_patience": 5}, "EarlyStoppingCallback(patience=5"),
        ({"enable_gradient_monitor": True}, "GradientMonitorCallback("),
    ],
)
def test_a_wrong_option_is_answered(options, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        TrainerConfig(**options)


@pytest.mark.parametrize(("name", "text"), [("sample", 3), (None, "text")])
def test_a_text_that_is_none_is_refused(tiny, name, text):
    with pytest.raises(TypeError, match=r"must be a str, got (3|None)\. Use str"):
        tiny.trainer(None, snapshot_interval=None).run.log_text(name, text)


def test_parts_of_the_wrong_kind_are_refused_naming_them():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for arguments, options, said in (
        ((optimizer, model), {}, "model must be a Module, got a SGD"),
        ((model, None), {}, "optimizer must be an Optimizer, got a NoneType"),
        ((model, optimizer), {"config": {"epochs": 1}}, "config must be a TrainerConfig"),
        ((nn.Linear(4, 1), optimizer), {}, "none of the parameters of SGD belongs to the model"),
        ((model, optimizer), {"scheduler": plateau}, "ReduceLROnPlateau waits for a metric"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            Trainer(*arguments, [torch.ones(2, 4)], discover=False, **options)


def test_a_validation_loss_that_is_not_finite_is_said(caplog):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    val = [torch.full((2, 4), math.nan)]
    loss_fn = lambda model, batch: model(batch).mean()  # noqa: E731
    config = TrainerConfig(epochs=1)
    Trainer(
        model,
        optimizer,
        [torch.ones(2, 4)],
        val,
        loss_fn=loss_fn,
        config=config,
        discover=False,
    ).train()
    assert "the validation loss at update 1 is nan." in caplog.messages


@pytest.mark.parametrize(
    "name",
    ["model", "optimizer", "scheduler", "config", "device", "output_dir", "has_validation"],
)
def test_a_callback_cannot_put_another_part_in_the_place_of_one_of_the_trainer(name):
    class Swap(TrainerCallback):
        def on_step_end(self, trainer):
            setattr(trainer, name, nn.Linear(7, 1))

    trainer = make_trainer(callbacks=[Swap()], epochs=1)
    before = getattr(trainer.run.view, name)
    with pytest.raises(CallbackError, match=rf"Swap.*on_step_end.*AttributeError.*{name}"):
        trainer.train()
    assert getattr(trainer.run.view, name) is before


def test_a_setting_that_nobody_reads_is_refused():
    class Stops(TrainerCallback):
        def on_step_end(self, trainer):
            trainer.stop = True

    trainer = make_trainer(callbacks=[Stops()], epochs=1)
    with pytest.raises(CallbackError, match=r"on_step_end.*AttributeError.*'stop'"):
        trainer.train()
    with pytest.raises(AttributeError, match=r"Trainer has no attribute 'stop'.*should_stop_"):
        trainer.stop = True
