"""Behind an update that was bad, and was not read yet, everybody else goes on: schedules, hooks,
callbacks that change the optimizer. All is as it was before that update when the run has ended.
"""

import copy
import math
import types
from collections import deque

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainer import NonFiniteError, Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback


class Spoil(TrainerCallback):
    """Makes a gradient bad in the given updates; keeps what there was before each update."""

    def __init__(self, *updates, rank=0):
        self.updates, self.rank, self.kept = updates, rank, {}

    def on_backward_end(self, trainer):
        update = trainer.step + 1
        self.kept[update] = keep(trainer.model, trainer.optimizer, trainer.scheduler)
        if update in self.updates and trainer.rank == self.rank:
            trainer.model[0].weight.grad.fill_(math.nan)


def keep(model, optimizer, scheduler):
    return copy.deepcopy([each.state_dict() for each in (model, optimizer, scheduler)])


def difference(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return next((d for key in one if (d := difference(one[key], other[key]))), None)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        return next((d for a, b in zip(one, other, strict=True) if (d := difference(a, b))), None)
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return None if same else f"{one} and {other}"


def schedule(optimizer):
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [4])


def build(callbacks, make=torch.optim.AdamW, prepare=lambda optimizer: None, **options):
    """A run of 12 updates, which reads its verdicts at the end of the epoch."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = make(model.parameters(), lr=0.01, fused=True, **options)
    prepare(optimizer)
    return Trainer(
        model,
        optimizer,
        [torch.randn(2, 4) for _ in range(12)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=schedule(optimizer),
        config=TrainerConfig(epochs=1, log_interval=100, device="cpu"),
        callbacks=callbacks,
        discover=False,
    )


def check_stopped(trainer, spoil):
    """The run ends in the first bad update, and all is as it was before that."""
    update = spoil.updates[0]
    with pytest.raises(NonFiniteError, match=f"update {update}"):
        trainer.train()
    assert trainer.step == update - 1
    after = keep(trainer.model, trainer.optimizer, trainer.scheduler)
    assert difference(after, spoil.kept[update]) is None


class Act(TrainerCallback):
    """Does something behind an update."""

    def __init__(self, update, act):
        self.update, self.act = update, act

    def on_step_end(self, trainer):
        if trainer.step == self.update:
            self.act(trainer)


def shrink(optimizer, *_):
    with torch.no_grad():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.mul_(0.99)


@pytest.mark.parametrize("bad", ["d", "g"])
def test_the_schedule_of_each_of_two_optimizers_stands_where_the_bad_update_found_it(reading, bad):
    models = {name: nn.Sequential(nn.Linear(4, 1)) for name in "dg"}
    optimizers, schedulers, before = {}, {}, {}
    for name, model in models.items():
        optimizers[name] = torch.optim.AdamW(model.parameters(), fused=True)
        schedulers[name] = schedule(optimizers[name])

    def look():
        return {name: keep(models[name], optimizers[name], schedulers[name]) for name in "dg"}

    class Spoiled(TrainerCallback):
        def on_backward_end(self, trainer):
            if trainer.step == 6 and trainer.optimizer is optimizers[bad]:
                before.update(look())
                models[bad][0].weight.grad.fill_(math.nan)

    config = TrainerConfig(epochs=1, log_interval=10, device="cpu")
    settings = {"scheduler": schedulers, "config": config, "callbacks": [Spoiled()]}
    run = Run(models, optimizers, **settings, discover=False)

    def loop():
        with run.start():
            for _ in run.epochs():
                for batch in run.batches([torch.ones(2, 4)] * 12):
                    for name in "dg":
                        run.backward(run.module[name](batch).square().mean(), name)
                        run.step(name)

    with pytest.raises(NonFiniteError, match=f"update 7 of '{bad}'"):
        loop()
    assert difference(look(), before) is None


def replace_step(optimizer):
    step = optimizer.step

    def changed(self):
        step()
        shrink(optimizer)

    optimizer.step = types.MethodType(changed, optimizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer.register_step_post_hook(shrink),
        lambda optimizer: optimizer.param_groups[0].update(fused=False),
        replace_step,
    ],
    ids=["hook", "not fused", "step"],
)
@pytest.mark.parametrize("update", [0, 3])
def test_a_step_that_comes_to_do_more_changes_nothing_either(late, change, update):
    """Before the run, and in the middle of an epoch."""
    spoil = Spoil(5, 6)
    act = Act(update, lambda trainer: change(trainer.optimizer))
    check_stopped(build([act, spoil], prepare=(lambda _: None) if update else change), spoil)


@pytest.mark.parametrize("before", [True, False])
def test_a_hook_on_the_steps_of_all_optimizers_changes_nothing_either(late, before):
    spoil, hooks = Spoil(5, 6), []

    def add(trainer):
        hooks.append(register_optimizer_step_post_hook(shrink))

    if before:
        add(None)
    try:
        check_stopped(build([Act(3, add), spoil]), spoil)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", [list, deque, dict])
def test_a_schedule_that_remembers_its_rates_forgets_those_behind_the_bad_update(late, kind):
    class Remembers(torch.optim.lr_scheduler.ExponentialLR):
        seen = None

        def step(self):
            super().step()
            self.seen = kind() if self.seen is None else self.seen
            if kind is dict:
                self.seen[self.last_epoch] = self._last_lr
            else:
                self.seen.append(self.last_epoch)

    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    spoil, data = Spoil(5), [torch.ones(2, 4)] * 9
    trainer = Trainer(
        model,
        optimizer,
        data,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=Remembers(optimizer, 0.9),
        config=TrainerConfig(epochs=1, log_interval=100, device="cpu"),
        callbacks=[spoil],
        discover=False,
    )
    check_stopped(trainer, spoil)
    assert list(trainer.scheduler.seen) == [0, 1, 2, 3, 4]


def test_a_loop_that_goes_on_behind_a_bad_update_goes_on_training(reading):
    """It catches the error, and drops what it had computed."""
    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    config = TrainerConfig(epochs=2, log_interval=4, device="cpu")
    run = Run(model, optimizer, config=config, discover=False)
    seen, weights = [], []
    with run.start():
        for epoch in run.epochs():
            try:
                for index, batch in enumerate(run.batches([torch.ones(2, 4)] * 8)):
                    factor = math.nan if (epoch, index) == (0, 2) else 1.0
                    run.backward(run.module(batch).square().mean() * factor)
                    run.step()
            except NonFiniteError as error:
                seen.append(str(error))
                run.discard()
            weights.append(model[0].weight.detach().clone())
    assert len(seen) == 1
    assert "update 3" in seen[0]
    assert run.result.status == "finished"
    assert not torch.equal(*weights)


def test_a_momentum_that_is_made_anew_is_no_memory_of_something_else(late):
    spoil = Spoil(6)
    clear = Act(5, lambda trainer: trainer.optimizer.state.clear())
    check_stopped(build([clear, spoil], torch.optim.SGD, momentum=0.9), spoil)


def test_a_group_that_came_behind_the_bad_update_is_gone(late):
    spoil = Spoil(4)
    add = Act(5, lambda trainer: trainer.optimizer.add_param_group({"params": []}))
    check_stopped(build([add, spoil]), spoil)


def fail(trainer):
    raise ValueError("mine")


def interrupt(trainer):
    raise KeyboardInterrupt


@pytest.mark.parametrize("act", [fail, interrupt])
def test_an_exception_behind_a_bad_update_does_not_hide_it(reading, caplog, act):
    spoil = Spoil(3)
    trainer = build([Act(5, act), spoil])
    interrupts = act is interrupt and reading == "late"
    with pytest.raises(KeyboardInterrupt if interrupts else NonFiniteError) as caught:
        trainer.train()
    assert "update 3" in (caplog.text if interrupts else str(caught.value))
    assert trainer.step == 2
    after = keep(trainer.model, trainer.optimizer, trainer.scheduler)
    assert difference(after, spoil.kept[3]) is None


@pytest.mark.parametrize("bad", [0, 1])
def test_a_step_that_does_more_in_one_process_changes_nothing_in_either(tiny, late, bad):
    def work(rank):
        spoil = Spoil(5, 6, rank=bad)

        def change(trainer):
            if trainer.rank == 1:
                trainer.optimizer.register_step_post_hook(shrink)

        check_stopped(build([Act(3, change), spoil]), spoil)
        return 0

    assert tiny.run_ranks(work) == [0, 0]
