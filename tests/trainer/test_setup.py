"""`on_setup`: callbacks change the structure of what is trained, and a resume does so again before
it loads the snapshot.
"""

from __future__ import annotations

import logging
import os
import signal

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR, StepLR
from torch.utils.data import DataLoader

from trainer import Run, Trainer, TrainerConfig
from trainer_callback import CallbackError, PluginError, ResumeError, TrainerCallback, UsageError


class Unfreeze(TrainerCallback):
    """Trains the first layer too, from the second epoch on."""

    def add(self, trainer):
        self.added = True
        parameters = [*trainer.model[0].parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        trainer.optimizer.add_param_group({"params": parameters, "lr": 0.01})

    def on_setup(self, trainer, state):
        self.added = False
        for parameter in trainer.model[0].parameters():
            parameter.requires_grad_(False)
        if state and state["added"]:
            self.add(trainer)

    def on_epoch_start(self, trainer, epoch):
        if epoch >= 1 and not self.added:
            self.add(trainer)

    def on_snapshot_save(self):
        return {"added": self.added}


class Forgets(Unfreeze):
    """Changes the structure, and not in `on_setup`."""

    on_setup = TrainerCallback.on_setup

    def on_train_start(self, trainer):
        self.added = False
        for parameter in trainer.model[0].parameters():
            parameter.requires_grad_(False)


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Adapt(TrainerCallback):
    """Puts a part of low rank beside a frozen layer."""

    def on_setup(self, trainer):
        model = trainer.model
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        model[0] = Adapter(model[0])
        trainer.optimizer.add_param_group({"params": [model[0].down, model[0].up]})


class Kill(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, trainer):
        if trainer.step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def mean_square(model, batch):
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def make(place, *callbacks, rate=0.3, batch_size=4, schedule=lambda o: StepLR(o, 3), **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(rate), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), lr=0.05)
    scheduler = schedule(optimizer)
    data = torch.arange(64.0).reshape(16, 4) / 64
    return Trainer(
        model,
        optimizer,
        DataLoader(data, batch_size=batch_size, shuffle=True),
        loss_fn=mean_square,
        scheduler=scheduler,
        config=TrainerConfig(
            **{"epochs": 3, "snapshot_interval": 1, "output_dir": place, "device": "cpu"} | settings
        ),
        callbacks=callbacks,
        discover=False,
    )


def weights(place):
    return (place / "final" / "model.safetensors").read_bytes()


CASES = [
    pytest.param(Unfreeze, {}, id="unfreezing"),
    pytest.param(Unfreeze, {"gradient_accumulation_steps": 2}, id="unfreezing, accumulated"),
    pytest.param(Adapt, {}, id="surgery"),
    pytest.param(Adapt, {"snapshot_frozen": False}, id="surgery, without the frozen base"),
    pytest.param(Adapt, {"precision": "fp16", "max_grad_norm": 0.1}, id="surgery, scaled"),
    pytest.param(Adapt, {"checkpoint_activations": "0"}, id="surgery, recomputed"),
]


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_a_killed_run_whose_callback_changes_the_structure_ends_in_the_same_bits(
    tiny, tmp_path, kind, settings
):
    make(tmp_path / "whole", kind(), **settings).train()
    steps = 2 if "gradient_accumulation_steps" in settings else 4
    for at in (2, steps + 2, 2 * steps + 1):  # in each epoch, or at its end
        place = tmp_path / str(at)

        def work(place=place, at=at):
            make(place, kind(), Kill(at), **settings).train()

        assert tiny.child(work).wait() == -signal.SIGKILL
        make(place, kind(), **settings).train(resume="auto")
        assert weights(place) == weights(tmp_path / "whole"), at


def test_it_comes_first_with_the_position_of_the_snapshot_and_nothing_restored(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_setup(self, trainer, checkpoint, state):
            step = None if checkpoint is None else checkpoint["step"]
            weight = trainer.model[2].weight.detach().clone()
            seen.append(("setup", trainer.step, step, state, weight))

        def on_snapshot_load(self, trainer, state):
            seen.append(("load", trainer.step, state, trainer.model[2].weight.detach().clone()))

        def on_train_start(self):
            seen.append(("start",))

        def on_snapshot_save(self):
            return {"kept": 3}

    make(tmp_path, Look(), max_steps=2).train()
    assert [each[0] for each in seen] == ["setup", "start"]
    assert seen[0][1:4] == (0, None, None)
    fresh = seen[0][-1]
    seen.clear()
    make(tmp_path, Look(), max_steps=3).train(resume=True)
    assert [each[0] for each in seen] == ["setup", "load", "start"]
    assert seen[0][1:4] == (2, 2, {"kept": 3})
    assert torch.equal(seen[0][-1], fresh)
    assert not torch.equal(seen[1][-1], fresh)


def test_a_run_in_which_nobody_sets_up_draws_the_numbers_that_it_drew_before(tmp_path):
    class Look(TrainerCallback):
        def on_setup(self):
            pass

    make(tmp_path / "plain").train()
    make(tmp_path / "looks", Look()).train()
    assert weights(tmp_path / "plain") == weights(tmp_path / "looks")


def test_one_that_changes_the_structure_elsewhere_is_named_where_the_snapshot_does_not_fit(
    tmp_path, caplog
):
    make(tmp_path, Forgets(), max_steps=6).train()
    assert "Let the callback do that again in on_setup" in caplog.text
    with pytest.raises(ResumeError) as caught:
        make(tmp_path, Forgets()).train(resume=True)
    said = str(caught.value)
    assert "'0.weight' (and 1 more) is not in this run's optimizer" in said
    assert "probably by Forgets (not installed). A callback that changes the structure" in said


def test_one_that_repeats_its_changes_is_not_warned_of_them(tmp_path, caplog):
    make(tmp_path, Unfreeze(), max_steps=6).train()
    make(tmp_path, Unfreeze()).train(resume=True)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: CosineAnnealingLR(optimizer, 100),
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer: StepLR(optimizer, 1, 0.9),
        lambda optimizer: SequentialLR(
            optimizer,
            [LambdaLR(optimizer, lambda step: 0.9**step), CosineAnnealingLR(optimizer, 100)],
            [6],
        ),
    ],
)
def test_a_group_that_comes_later_is_scheduled_too_and_resumed_so(tmp_path, caplog, schedule):
    whole = make(tmp_path / "whole", Unfreeze(), schedule=schedule)
    whole.train()
    assert len({*[group["lr"] for group in whole.optimizer.param_groups], 0.01}) == 3
    make(tmp_path / "cut", Unfreeze(), schedule=schedule, max_steps=7).train()
    make(tmp_path / "cut", Unfreeze(), schedule=schedule).train(resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_the_rate_of_a_new_group_is_what_the_function_of_a_schedule_multiplies(tmp_path):
    trainer = make(tmp_path, Unfreeze(), schedule=lambda o: LambdaLR(o, lambda step: 0.9**step))
    trainer.train()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.05 * 0.9**12, 0.01 * 0.9**12])


def test_a_scheduler_that_cannot_take_a_new_group_is_told_once(tmp_path, caplog):
    class OwnLR(CosineAnnealingLR):
        pass

    make(tmp_path, Unfreeze(), schedule=lambda optimizer: OwnLR(optimizer, 100)).train()
    (said,) = [text for text in caplog.messages if "was built over" in text]
    assert said.startswith("OwnLR was built over 1 of the 2 groups of the optimizer")


def test_a_refusal_in_it_names_the_plugin_and_closes_all(tmp_path):
    closed = []

    class Refuses(TrainerCallback):
        def on_setup(self):
            raise UsageError("this model has no attention.")

        def on_train_end(self):
            raise AssertionError("the run has not begun")

        def close(self):
            closed.append(self)

    with pytest.raises(PluginError, match=r"Refuses \(not installed\): this model has no attent"):
        make(tmp_path, Refuses()).train()
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.model.requires_grad_(False), "every parameter of AdamW is frozen"),
        (
            lambda t: t.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]}),
            "1 of 3 parameters that are not the model's",
        ),
        (lambda t: t.model.append(nn.Linear(1, 1, device="meta")), "on the meta device"),
    ],
)
def test_a_structure_that_cannot_be_trained_is_refused_before_the_first_step(
    tmp_path, change, text
):
    class Changes(TrainerCallback):
        def on_setup(self, trainer):
            change(trainer)

    with pytest.raises(UsageError, match=text):
        make(tmp_path, Changes()).train()


def test_a_failure_in_it_names_the_plugin(tmp_path):
    class Fails(TrainerCallback):
        def on_setup(self):
            raise KeyError("q_proj")

    with pytest.raises(CallbackError, match=r"Fails.*on_setup: KeyError: 'q_proj'"):
        make(tmp_path, Fails()).train()


@pytest.mark.parametrize("kind", [Adapt, "thaw"])
def test_two_processes_average_the_gradients_of_what_was_set_up(tiny, tmp_path, kind):
    class Thaw(TrainerCallback):
        def on_setup(self, trainer):
            parameters = [*trainer.model[0].requires_grad_(True).parameters()]
            trainer.optimizer.add_param_group({"params": parameters})

    class Linked(Adapt):
        def on_setup(self, trainer):
            super().on_setup(trainer)
            with torch.no_grad():
                trainer.model[0].down.fill_(0.1)
                trainer.model[0].up.fill_(0.2)

    chosen = Thaw if kind == "thaw" else Linked
    settings = {"rate": 0.0, "epochs": 2}
    make(tmp_path / "one", chosen(), batch_size=8, **settings).train()

    def work(rank):
        make(tmp_path / "two", chosen(), batch_size=4, **settings).train()

    assert tiny.run_ranks(work) == [0, 0]
    one, two = (tiny.newest_state(tmp_path / name)["model"] for name in ("one", "two"))
    assert [*one] == [*two]
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_processes_that_set_up_other_structures_are_refused(tiny, tmp_path):
    class Uneven(TrainerCallback):
        def on_setup(self, trainer):
            trainer.model.append(nn.Linear(1, 1 + trainer.rank))

    def work(rank):
        with pytest.raises(UsageError, match=r"model\.3\.weight is .* in process 0 and"):
            make(tmp_path / "run", Uneven()).train()

    assert tiny.run_ranks(work) == [0, 0]


def test_a_loop_of_ones_own_with_two_optimizers_is_set_up_as_well(tmp_path):
    class Grow(TrainerCallback):
        def on_setup(self, trainer):
            trainer.model["d"].append(nn.Linear(1, 1))
            group = {"params": [*trainer.model["d"][1].parameters()]}
            trainer.optimizer.add_param_group(group)

    models = {"d": nn.Sequential(nn.Linear(4, 1)), "g": nn.Linear(4, 4)}
    optimizers = {name: torch.optim.SGD(each.parameters(), lr=0.1) for name, each in models.items()}
    config = TrainerConfig(epochs=1, device="cpu")
    run = Run(models, optimizers, config=config, callbacks=[Grow()])
    with run.start():
        before = models["d"][1].weight.detach().clone()
        for _ in run.epochs():
            for batch in run.batches([torch.ones(2, 4)] * 2):
                found = run.module["d"](run.module["g"](batch))
                run.backward(found.square().mean())
                run.step("d")
                run.step("g")
    assert not torch.equal(models["d"][1].weight, before)
