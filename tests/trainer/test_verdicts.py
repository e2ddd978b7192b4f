"""NaN or Inf at an update, whose verdict is read before the step or, with a fused optimizer, left
on the device until somebody looks: either way nothing has seen it, and the error names the update.
"""

import copy
import json
import math
import re

import pytest
import torch
from torch import nn

from trainer import Loss, NonFiniteError, Run, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_tensorboard import TensorBoardCallback
from trainer_throughput import ThroughputCallback

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
    "not fused": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
BAD = {"nan": math.nan, "inf": math.inf}


class Spoil(TrainerCallback):
    """Makes a gradient bad in the given updates, the first of which is 1; keeps what there was
    before each update.
    """

    def __init__(self, *updates, value=math.nan, rank=0):
        self.updates, self.value, self.rank = updates, value, rank
        self.kept = {}
        self.validated = []

    def on_backward_end(self, trainer):
        update = trainer.step + 1
        self.kept[update] = keep(trainer.model, trainer.optimizer, trainer.scheduler)
        if update in self.updates and trainer.rank == self.rank:
            trainer.model[0].weight.grad.view(-1)[1] = self.value

    def on_validation_start(self, trainer):
        self.validated.append(trainer.step)


def keep(model, optimizer, scheduler=None):
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return copy.deepcopy({name: each.state_dict() for name, each in parts.items() if each})


def schedule(optimizer):
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [4])


def build(optimizer="adamw", callbacks=(), place=None, loss_fn=None, **config):
    """A run of 12 updates, 6 an epoch; with 4 micro-batches an update all the same."""
    torch.manual_seed(3)
    steps = config.get("gradient_accumulation_steps", 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    made = OPTIMIZERS[optimizer](model.parameters())
    data = [torch.randn(4, 4) for _ in range(6 * steps)]
    settings = {"epochs": 2, "log_interval": 5, "device": "cpu", **config}
    return Trainer(
        model,
        made,
        data,
        data[:2],
        loss_fn=loss_fn or (lambda model, batch: model(batch).float().square().mean()),
        scheduler=schedule(made),
        config=TrainerConfig(output_dir=place, **settings),
        callbacks=[*callbacks],
        discover=False,
    )


def ours():
    """A callback of every plugin that takes part in each update."""
    return [
        EarlyStoppingCallback(patience=9),
        GradientMonitorCallback(monitor_interval=2, report=False),
        EMACallback(decay=0.5),
        ThroughputCallback(interval=3),
        TensorBoardCallback(),
    ]


def check_stopped(trainer, spoil, update, place):
    """The run has ended in `update`, and all is as it was before that."""
    assert trainer.step == update - 1
    assert trainer.run.result.status == "failed"
    assert trainer.run.result.steps == update - 1
    after = keep(trainer.model, trainer.optimizer, trainer.scheduler)
    assert difference(after, spoil.kept[update]) is None
    assert all(step < update for step in spoil.validated)
    assert not (place / "final").exists()
    for path in list_snapshots(place / "snapshots"):
        assert int(re.findall(r"\d+", path.name)[-1]) < update
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in lines if "loss" in line or "train_loss" in line]
    assert all(line["step"] < update for line in own)


def difference(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return next((d for key in one if (d := difference(one[key], other[key]))), None)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        return next((d for a, b in zip(one, other, strict=True) if (d := difference(a, b))), None)
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return None if same else f"{one} and {other}"


@pytest.mark.parametrize("update", [1, 2, 3, 4, 6, 7, 12])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bad_gradient_ends_the_run_as_it_was_before(tmp_path, reading, update, steps, precision):
    """Behind update 3 and 9 is a validation, behind 4 and 8 a snapshot, behind 6 and 12 both."""
    spoil = Spoil(update)
    trainer = build(
        callbacks=[spoil, *ours()],
        place=tmp_path,
        gradient_accumulation_steps=steps,
        precision=precision,
        max_grad_norm=1.0,
        eval_interval=3,
        snapshot_interval=4,
        snapshot_epochs=True,
    )
    with pytest.raises(NonFiniteError, match=rf"epoch {(update - 1) // 6}, update {update}\. The"):
        trainer.train()
    check_stopped(trainer, spoil, update, tmp_path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_whatever_the_optimizer_is(tmp_path, reading, optimizer, value, clip):
    spoil = Spoil(1 if value == "inf" and clip else 8, value=BAD[value])
    trainer = build(optimizer, [spoil], tmp_path, max_grad_norm=clip, snapshot_interval=2)
    found = r"norm is not finite .*; the first such gradient is that of 0\.weight\)"
    with pytest.raises(NonFiniteError, match=f"{found} at .*update {spoil.updates[0]}"):
        trainer.train()
    check_stopped(trainer, spoil, spoil.updates[0], tmp_path)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_bad_loss_with_finite_gradients_ends_the_run_as_well(tmp_path, reading, steps):
    spoil, count = Spoil(), iter(range(100))

    def loss_fn(model, batch):
        loss = model(batch).square().mean()
        return loss + math.inf if model.training and next(count) == 7 * steps else loss

    trainer = build(
        loss_fn=loss_fn, callbacks=[spoil], place=tmp_path, gradient_accumulation_steps=steps
    )
    with pytest.raises(NonFiniteError, match=r"loss is not finite \(inf\) at epoch 1, update 8\."):
        trainer.train()
    check_stopped(trainer, spoil, 8, tmp_path)


def summed(kind, bad=None):
    """A loss function whose answers are sums over 1 to 3 items, or over none in an update that is a
    multiple of 5; of the update `bad` it is infinite.
    """

    def loss_fn(model, batch):
        training = model.training and trainer_of[0] is not None
        update = trainer_of[0].step + 1 if training else 1
        n = 0 if training and update % 5 == 0 else 1 + update % 3
        total = model(batch[:n]).float().square().sum()
        total = total + math.inf if training and update == bad else total
        return Loss(total, torch.tensor(n) if kind == "tensor" else n)

    trainer_of = [None]
    return loss_fn, trainer_of


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("bad", [1, 4, 6, 7])
def test_a_bad_sum_ends_the_run_as_it_was_before(tmp_path, reading, steps, bad):
    spoil = Spoil()
    loss_fn, trainer_of = summed("number", bad)
    options = {"gradient_accumulation_steps": steps, "snapshot_interval": 2}
    trainer = build(loss_fn=loss_fn, callbacks=[spoil], place=tmp_path, **options)
    trainer_of[0] = trainer
    with pytest.raises(NonFiniteError, match=rf"loss is not finite \(inf\) at .* update {bad}\."):
        trainer.train()
    check_stopped(trainer, spoil, bad, tmp_path)


@pytest.mark.parametrize("steps", [1, 4])
def test_sums_train_the_same_whenever_their_verdicts_are_read(monkeypatch, tmp_path, steps):
    def train(kind):
        loss_fn, trainer_of = summed(kind)
        trainer = build(
            loss_fn=loss_fn,
            place=tmp_path / kind,
            gradient_accumulation_steps=steps,
            eval_interval=4,
        )
        trainer_of[0] = trainer
        result = trainer.train()
        assert trainer.scheduler.last_epoch == 10  # two updates had no item
        lines = (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        numbers = [{**line, "_time": 0} for line in map(json.loads, lines) if "ended" not in line]
        return keep(trainer.model, trainer.optimizer), numbers, result.train_loss

    read = train("tensor")
    monkeypatch.setattr("trainer.step.verdicts._WAITING_COSTS", {"cpu"})
    late = train("number")
    assert difference(read[0], late[0]) is None
    assert read[1:] == late[1:]


def test_the_first_of_several_bad_updates_is_named(tmp_path, reading):
    spoil = Spoil(8, 9)
    trainer = build(callbacks=[spoil], place=tmp_path)
    with pytest.raises(NonFiniteError, match="update 8"):
        trainer.train()
    check_stopped(trainer, spoil, 8, tmp_path)


@pytest.mark.parametrize("interval", [{"max_steps": 9}, {"log_interval": 7}, {"epochs": 1}])
def test_a_bad_last_update_is_found_at_the_end(tmp_path, reading, interval):
    last = {"max_steps": 9, "log_interval": 12, "epochs": 6}[next(iter(interval))]
    spoil = Spoil(last)
    trainer = build(callbacks=[spoil], place=tmp_path, **{"log_interval": 100, **interval})
    with pytest.raises(NonFiniteError, match=f"update {last}"):
        trainer.train()
    check_stopped(trainer, spoil, last, tmp_path)


def test_a_bad_update_before_a_break_is_found(tmp_path, reading):
    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    config = TrainerConfig(output_dir=tmp_path, log_interval=100, device="cpu")
    run = Run(model, optimizer, config=config, callbacks=[Spoil(4)], discover=False)

    def loop():
        with run.start():
            for _ in run.epochs():
                for index, batch in enumerate(run.batches([torch.ones(2, 4)] * 9)):
                    run.backward(run.module(batch).square().mean())
                    run.step()
                    if index == 5:
                        return

    with pytest.raises(NonFiniteError, match="update 4"):
        loop()
    assert not list_snapshots(tmp_path / "snapshots")


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "not fused"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_skipped_update_alone_is_left_out(reading, optimizer, steps, precision):
    """Its place in the data, and its rate of the schedule, are used up or not as ever."""
    spoil, skips = Spoil(1, 5, 6, 12), []

    class Skips(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if skipped:
                skips.append(trainer.step)

    trainer = build(
        optimizer,
        [spoil, Skips(), *ours()[:-1]],
        on_nonfinite="skip",
        gradient_accumulation_steps=steps,
        precision=precision,
    )
    result = trainer.train()
    assert (result.status, skips) == ("finished", [1, 5, 6, 12])
    assert trainer.metrics["skipped_updates"] == 4
    assert difference(spoil.kept[5], spoil.kept[6]) is None
    assert difference(spoil.kept[6], spoil.kept[7]) is None
    if optimizer != "momentum":
        assert {int(each["step"]) for each in trainer.optimizer.state.values()} == {8}
    assert trainer.scheduler.last_epoch == 8


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_an_overflow_in_fp16_is_skipped_and_a_nan_that_stays_ends_the_run(reading, optimizer):
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            seen.append((skipped, trainer.loss_scale))

    result = build(optimizer, [Spoil(1, 3), Seen()], precision="fp16").train()
    assert result.status == "finished"
    assert [skipped for skipped, _ in seen] == [True, False, True] + [False] * 9
    assert [scale for _, scale in seen][:4] == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    forever = build(optimizer, [Spoil(*range(3, 99))], precision="fp16", epochs=9)
    with pytest.raises(NonFiniteError, match="update 35"):
        forever.train()


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("optimizer", ["adamw", "not fused"])
@pytest.mark.parametrize("items", [None, 4])
def test_a_bad_update_of_one_process_is_bad_in_both(
    tiny, tmp_path, reading, policy, optimizer, items
):
    """Where the losses are sums, the process without the bad gradient has no items."""

    def work(rank):
        def sums(model, batch):
            batch = batch[: items * rank if model.training else items]
            return Loss(model(batch).square().sum(), len(batch))

        spoil = Spoil(8, rank=1)
        options = {"on_nonfinite": policy, "epochs": 4, "loss_fn": sums if items else None}
        trainer = build(optimizer, [spoil], tmp_path, **options)
        if policy == "stop":
            with pytest.raises(NonFiniteError, match="update 8"):
                trainer.train()
            check_stopped(trainer, spoil, 8, tmp_path)
        else:
            assert trainer.train().status == "finished"
            assert trainer.metrics["skipped_updates"] == 1
            assert difference(spoil.kept[8], spoil.kept[9]) is None
        return 0

    assert tiny.run_ranks(work) == [0, 0]


def test_a_run_is_the_same_whenever_its_verdicts_are_read(monkeypatch, tmp_path):
    def train(place):
        trainer = build(callbacks=ours()[:3], place=place, max_grad_norm=0.5, eval_interval=4)
        trainer.train()
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        numbers = [{**line, "_time": 0} for line in lines if "ended" not in line]
        return keep(trainer.model, trainer.optimizer, trainer.scheduler), numbers

    now = train(tmp_path / "now")
    monkeypatch.setattr("trainer.step.verdicts._WAITING_COSTS", {"cpu"})
    late = train(tmp_path / "late")
    assert difference(now[0], late[0]) is None
    assert now[1] == late[1]


def test_a_resumed_run_whose_verdicts_are_read_late_goes_on_bit_by_bit(late, tmp_path):
    whole = build(callbacks=ours()[:3])
    whole.train()
    build(callbacks=ours()[:3], place=tmp_path, max_steps=7).train()
    second = build(callbacks=ours()[:3], place=tmp_path)
    second.train(resume=True)
    assert (
        difference(keep(whole.model, whole.optimizer), keep(second.model, second.optimizer)) is None
    )


@pytest.mark.parametrize("bad", ["d", "g"])
@pytest.mark.parametrize("fused", ["d", "g", "dg"])
def test_of_two_optimizers_neither_steps_behind_a_bad_update_of_one(late, bad, fused):
    models = {name: nn.Sequential(nn.Linear(4, 1)) for name in "dg"}
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), fused=name in fused)
        for name, model in models.items()
    }
    before = {}

    class Look(TrainerCallback):
        def on_backward_end(self, trainer):
            if trainer.step == 6 and trainer.optimizer is optimizers[bad]:
                before.update({name: keep(models[name], optimizers[name]) for name in "dg"})
                models[bad][0].weight.grad.fill_(math.nan)

    config = TrainerConfig(epochs=1, log_interval=10, device="cpu")
    run = Run(models, optimizers, config=config, callbacks=[Look()], discover=False)

    def loop():
        with run.start():
            for _ in run.epochs():
                for batch in run.batches([torch.ones(2, 4)] * 12):
                    for name in "dg":
                        run.backward(run.module[name](batch).square().mean(), name)
                        run.step(name)

    with pytest.raises(NonFiniteError, match=f"update 7 of '{bad}'"):
        loop()
    assert difference({name: keep(models[name], optimizers[name]) for name in "dg"}, before) is None


@pytest.mark.parametrize("kind", ["hook", "subclass", "new parameter"])
@pytest.mark.parametrize("update", [5, 6])
def test_a_step_that_may_do_more_is_not_left_to_the_device(late, kind, update):
    """The new parameter comes in update 6, and with it its state."""

    class Own(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            shrink(self)

    def shrink(optimizer, *_):
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.mul_(0.99)

    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 1, bias=False))
    made = (Own if kind == "subclass" else torch.optim.AdamW)(model.parameters(), fused=True)
    if kind == "hook":
        made.register_step_post_hook(shrink)

    def loss_fn(model, batch):
        shown = model[0](batch)
        uses = kind != "new parameter" or trainer.step >= 5
        return (model[1](shown) if uses else shown).square().mean()

    spoil = Spoil(update)
    config = TrainerConfig(epochs=1, log_interval=100, device="cpu")
    data = [torch.ones(2, 4)] * 9
    options = {"loss_fn": loss_fn, "config": config, "callbacks": [spoil], "discover": False}
    trainer = Trainer(model, made, data, **options)
    with pytest.raises(NonFiniteError, match=f"update {update}"):
        trainer.train()
    assert difference(keep(model, made), spoil.kept[update]) is None
