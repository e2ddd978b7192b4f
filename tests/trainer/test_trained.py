"""What is trained, measured, clipped and saved is one list: the parameters of the model."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.step.parts import move_state, with_article
from trainer_callback import TrainerCallback, UsageError


def make(optimizer_of=None, *, model=None, batches=8, callbacks=(), scheduler_of=None, **config):
    torch.manual_seed(0)
    if model is None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = (optimizer_of or (lambda model: torch.optim.SGD(model.parameters(), lr=0.1)))(model)
    return Trainer(
        model,
        optimizer,
        [torch.ones(2, 4)] * batches,
        loss_fn=config.pop("loss_fn", lambda model, batch: model(batch).square().mean()),
        scheduler=scheduler_of(optimizer) if scheduler_of else None,
        config=TrainerConfig(**{"epochs": 1, "log_interval": 1, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


class Norms(TrainerCallback):
    def __init__(self):
        self.norms = []

    def on_gradients_clipped(self, trainer, total_norm, clipped):
        self.norms.append(float(total_norm))


def of_last_layer(lr=0.0):
    return lambda model: torch.optim.SGD(model[1].parameters(), lr=lr)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_norm_of_an_update_has_no_gradient_of_another_one(precision, caplog):
    norms, whole = Norms(), Norms()
    make(of_last_layer(), callbacks=[norms], max_grad_norm=1e9, precision=precision).train()
    assert "2 of 4 parameters that require a gradient are not in the optimizer" in caplog.text
    everything = lambda model: torch.optim.SGD(model.parameters(), lr=0.0)  # noqa: E731
    make(everything, callbacks=[whole], max_grad_norm=1e9, precision=precision).train()
    assert norms.norms == whole.norms
    assert len({norm for norm in norms.norms if math.isfinite(norm)}) == 1


def test_an_optimizer_over_a_part_trains_as_a_loop_by_hand_that_clips_the_model():
    trainer = make(of_last_layer(0.1), max_grad_norm=0.5)
    by_hand = copy.deepcopy(trainer.model)
    optimizer = torch.optim.SGD(by_hand[1].parameters(), lr=0.1)
    for _ in range(8):
        by_hand.zero_grad()
        by_hand(torch.ones(2, 4)).square().mean().backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
    trainer.train()
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_that_are_there_before_training_or_come_between_updates_do_not_count():
    class Leave(TrainerCallback):
        def on_epoch_start(self, trainer):
            self.spoil(trainer)

        on_batch_end = on_train_start = on_epoch_start

        def spoil(self, trainer):
            for parameter in trainer.model.parameters():
                parameter.grad = torch.full_like(parameter, 1e6)

    clean = make()
    clean.train()
    spoilt = make(callbacks=[Leave()])
    Leave().spoil(spoilt)
    spoilt.train()
    assert torch.equal(clean.model[0].weight, spoilt.model[0].weight)


@pytest.mark.parametrize("way", ["frozen", "left", "came"])
def test_parameters_may_come_and_go_while_training(way):
    norms = Norms()

    class Change(TrainerCallback):
        def on_step_end(self, trainer):
            groups = trainer.optimizer.param_groups
            if trainer.step == 3 and way == "frozen":
                trainer.model[0].requires_grad_(False)
            if trainer.step == 3 and way == "left":
                del groups[0]["params"][:2]
            if trainer.step == 3 and way == "came":
                trainer.optimizer.add_param_group({"params": [*trainer.model[0].parameters()]})

    start = of_last_layer() if way == "came" else None
    trainer = make(start, callbacks=[norms, Change()], max_grad_norm=1e9)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.train()
    expected = (
        [*trainer.model[1].parameters()] if way == "frozen" else [*trainer.model.parameters()]
    )
    trainer.model(torch.ones(2, 4)).square().mean().backward()
    norm = float(nn.utils.get_total_norm([p.grad for p in expected]))
    assert norms.norms[3:] == [norm] * 5


def test_a_layer_that_is_added_while_training_is_clipped_saved_and_cleared():
    class Grow(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                trainer.model.append(nn.Linear(1, 1))
                trainer.optimizer.add_param_group({"params": [*trainer.model[2].parameters()]})

    norms = Norms()
    trainer = make(callbacks=[norms, Grow()], max_grad_norm=1e9)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.optimizer.defaults["lr"] = 0.0
    trainer.train()
    assert len({*norms.norms[3:]}) == 1
    trainer.model(torch.ones(2, 4)).square().mean().backward()
    assert norms.norms[-1] == nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])


def test_an_optimizer_with_parameters_of_another_module_is_refused_with_the_way_out():
    criterion = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"2 of 6 parameters .* not the model's .*one nn\.Module"):
        make(lambda m: torch.optim.SGD([*m.parameters(), *criterion.parameters()], lr=0.1))


def test_a_parameter_of_another_module_that_comes_later_ends_the_run_before_it_is_trained():
    late = nn.Linear(1, 1)
    before = late.weight.detach().clone()

    class Add(TrainerCallback):
        def on_batch_start(self, trainer):
            if trainer.step == 2:
                trainer.optimizer.add_param_group({"params": [*late.parameters()]})

    trainer = make(callbacks=[Add()], loss_fn=lambda m, b: late(m(b)).square().mean())
    with pytest.raises(ConfigError, match="parameter 0 of group 1"):
        trainer.train()
    assert trainer.step == 2
    assert torch.equal(late.weight, before)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    norms = Norms()
    trainer = make(model=model, callbacks=[norms], max_grad_norm=1e9, batches=2)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.train()
    model(torch.ones(2, 4)).square().mean().backward()
    assert norms.norms == [float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))] * 2


class Sam(torch.optim.SGD):
    def step(self, closure=None):
        assert closure is not None, "requires closure, but it was not provided"


class TwoSteps(torch.optim.SGD):
    def first_step(self): ...

    def second_step(self): ...


def frozen(model):
    model.requires_grad_(False)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("optimizer_of", "text"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS wants a closure in step"),
        (lambda m: TwoSteps(m.parameters()), "TwoSteps wants a closure"),
        (lambda m: Sam(m.parameters()), "Sam wants a closure .*requires closure"),
        (frozen, "every parameter of SGD is frozen"),
    ],
)
def test_an_optimizer_that_cannot_be_stepped_is_refused(optimizer_of, text):
    with pytest.raises(UsageError, match=text):
        make(optimizer_of).train()


def test_a_scheduler_of_another_optimizer_is_refused():
    other = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    with pytest.raises(ConfigError, match=r"StepLR belongs to another optimizer \(an Adam\)"):
        make(scheduler_of=lambda _: schedule)
    with pytest.raises(ConfigError, match="must be a learning-rate scheduler, got a float"):
        make(scheduler_of=lambda _: 0.5)
    chained = torch.optim.lr_scheduler.ChainedScheduler
    step = torch.optim.lr_scheduler.StepLR
    assert make(scheduler_of=lambda o: chained([step(o, 1), step(o, 2)])).train().steps == 8


def test_what_the_optimizer_remembers_moves_with_its_parameter():
    model = nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.Adam(model.parameters())
    state = {"step": torch.tensor(1.0), "exp_avg": torch.ones(1, 2)}
    optimizer.state[model.weight] = state
    move_state(optimizer)
    assert (state["exp_avg"].device.type, state["step"].device.type) == ("meta", "cpu")
    optimizer.param_groups[0]["capturable"] = True
    move_state(optimizer)
    assert state["step"].device.type == "meta"


@pytest.mark.parametrize(
    ("make_optimizer", "step_moves"),
    [
        (lambda p: torch.optim.AdamW(p, fused=True), True),
        (torch.optim.AdamW, False),
        (lambda p: torch.optim.AdamW(p, amsgrad=True, foreach=True), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), False),
        (torch.optim.RMSprop, False),
        (torch.optim.Adagrad, False),
    ],
)
def test_the_state_of_a_step_on_the_cpu_follows_the_model(make_optimizer, step_moves):
    """A fused optimizer counts its steps where the parameters are, any other on the host."""
    model = nn.Linear(2, 1)
    optimizer = make_optimizer(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    assert all(states)
    moved = [nn.Parameter(each.detach().to("meta")) for each in model.parameters()]
    optimizer.param_groups[0]["params"] = moved
    optimizer.state = dict(zip(moved, states, strict=True))
    move_state(optimizer)
    for state in states:
        for name, value in state.items():
            there = "cpu" if name == "step" and not step_moves else "meta"
            assert value.device.type == there, name


def test_the_state_that_lies_in_containers_moves_too():
    model = nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.SGD(model.parameters())
    state = {"old": [torch.ones(2), (torch.ones(1), 3)], "by": {"name": torch.ones(1)}, "n": 4}
    optimizer.state[model.weight] = state
    move_state(optimizer)
    first, (second, three) = state["old"]
    found = [each.device.type for each in (first, second, state["by"]["name"])]
    assert (found, three, state["n"]) == (["meta"] * 3, 3, 4)


def test_names_have_the_right_article():
    assert [with_article(kind) for kind in (int, nn.Module, torch.optim.Adam)] == [
        "an int",
        "a Module",
        "an Adam",
    ]


def rates(trainer_of):
    seen = {}

    class Log(TrainerCallback):
        def on_log(self, metrics, step):
            if "learning_rate" in metrics:
                seen[step] = metrics["learning_rate"]

    trainer_of([Log()]).train()
    return seen


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def test_the_rate_that_is_logged_is_the_one_that_the_update_used():
    seen = rates(lambda callbacks: make(callbacks=callbacks, scheduler_of=halving, batches=4))
    assert seen == {1: 0.1, 2: 0.05, 3: 0.025, 4: 0.0125}


def test_the_rate_is_right_after_a_skipped_update_with_groups_and_as_a_tensor():
    def two_groups(model):
        groups = [{"params": [p]} for p in model.parameters()]
        return torch.optim.AdamW(groups, lr=torch.tensor(0.5), foreach=False)

    count = iter(range(100))

    def loss_fn(model, batch):
        return model(batch).square().mean() * (math.nan if next(count) == 1 else 1)

    options = {"loss_fn": loss_fn, "on_nonfinite": "skip", "batches": 4, "log_interval": 2}
    seen = rates(
        lambda callbacks: make(two_groups, callbacks=callbacks, scheduler_of=halving, **options)
    )
    assert seen == {2: 0.25, 4: 0.125}


def test_a_resumed_run_logs_the_rates_of_one_that_was_not_interrupted(tmp_path):
    options = {"scheduler_of": halving, "batches": 6, "output_dir": tmp_path}

    def first(callbacks):
        return make(callbacks=callbacks, **options, max_steps=2)

    def second(callbacks):
        trainer = make(callbacks=callbacks, **options)
        trainer.train = lambda run=trainer.train: run(resume=True)
        return trainer

    assert rates(first) == {1: 0.1, 2: 0.05}
    assert rates(second) == {3: 0.025, 4: 0.0125, 5: 0.00625, 6: 0.003125}


def test_an_optimizer_without_a_rate_logs_none():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 0.1 * parameter.grad

    assert rates(lambda callbacks: make(lambda m: Own(m.parameters()), callbacks=callbacks)) == {}


def test_what_is_left_out_is_said_once_and_nothing_of_a_whole_optimizer(caplog):
    caplog.set_level(logging.WARNING)
    make()
    assert not caplog.records


@pytest.mark.parametrize("way", ["unfrozen", "left"])
def test_what_requires_a_gradient_and_is_in_no_optimizer_any_more_is_told_once(way, caplog):
    class Change(TrainerCallback):
        def on_epoch_start(self, trainer, epoch):
            caplog.clear() if epoch == 0 else None
            if epoch == 1 and way == "unfrozen":
                trainer.model[0].requires_grad_(True)

        def on_step_end(self, trainer):
            if trainer.step == 3 and way == "left":
                del trainer.optimizer.param_groups[0]

    def two_groups(model):
        return torch.optim.SGD([{"params": [*layer.parameters()]} for layer in model], lr=0.1)

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(way == "left")
    optimizer_of = two_groups if way == "left" else of_last_layer(0.1)
    make(optimizer_of, model=model, batches=2, epochs=4, callbacks=[Change()]).train()
    said = [m for m in caplog.messages if "not in the optimizer" in m]
    assert len(said) == 1
    assert said[0].startswith("2 of 4 parameters that require a gradient")
    assert "such as 0.weight" in said[0]


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RMSprop", "Rprop"])
def test_what_works_on_a_gpu_only_is_refused_on_a_cpu(name):
    with pytest.raises(ConfigError, match=rf"group 0 of {name} has capturable=True.* on the CPU"):
        make(lambda model: getattr(torch.optim, name)(model.parameters(), capturable=True))


def test_a_snapshot_whose_optimizer_worked_on_a_gpu_is_refused_before_the_first_step(tmp_path):
    class ToGpu(TrainerCallback):
        def on_epoch_end(self, trainer):
            trainer.optimizer.param_groups[0]["capturable"] = True

    def adam(model):
        return torch.optim.AdamW(model.parameters())

    make(adam, output_dir=tmp_path, callbacks=[ToGpu()]).train()
    with pytest.raises(ConfigError, match="has capturable=True, which is for parameters on a GPU"):
        make(adam, output_dir=tmp_path, epochs=2).train(resume=True)


def test_steps_that_are_differentiated_through_are_refused():
    with pytest.raises(ConfigError, match="SGD has differentiable=True"):
        make(lambda model: torch.optim.SGD(model.parameters(), differentiable=True))


@pytest.mark.parametrize("value", [print, None])
def test_a_hook_that_is_set_when_hooks_have_been_taken_is_refused_before_the_first_step(value):
    class Late(TrainerCallback):
        steps = 0

        def on_train_start(self):
            self.on_batch_end = value

        def on_batch_end(self):
            self.steps += 1

    late = Late()
    with pytest.raises(UsageError, match=r"^Late .*: on_batch_end was set on the instance after"):
        make(callbacks=[late]).train()
    assert late.steps == 0


def test_a_hook_that_is_set_later_still_is_told_at_the_end(caplog):
    class Late(TrainerCallback):
        def __init__(self):
            self.on_step_end = self.count
            self.steps = 0

        def count(self):
            self.steps += 1

        def on_epoch_start(self):
            self.on_epoch_end = self.count

    late = Late()
    make(callbacks=[late]).train()
    assert late.steps == 8
    assert ["on_epoch_end was set on the instance after" in line for line in caplog.messages] == [
        True
    ]
