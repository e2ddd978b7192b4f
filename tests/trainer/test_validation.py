"""A validation leaves no trace in random numbers, modes, gradients and memory."""

import random
import resource

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def make(model, val_loader=None, *, loader=None, loss_fn=None, callbacks=(), **config):
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        loader if loader is not None else [torch.ones(4, 4) * i for i in range(6)],
        val_loader,
        loss_fn=loss_fn or (lambda model, batch: model(batch).square().mean()),
        config=TrainerConfig(**{"epochs": 2, "eval_interval": 2, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


def draw():
    return random.random() + float(numpy.random.rand()) + torch.rand(()).item()


def draws_in_the_loss(model, batch):
    return model(batch).square().mean() + 0 * draw()


class DrawsInHooks(TrainerCallback):
    def on_validation_start(self):
        draw()

    def on_validation_end(self):
        draw()


def weights_after(tiny, val_loader, loss_fn, callbacks):
    model = make_net()
    make(model, val_loader, loader=tiny.loader("map"), loss_fn=loss_fn, callbacks=callbacks).train()
    return model.state_dict()


SOURCES = {
    "items in this process": ("map", None, ()),
    "an iterable data set": ("stream", None, ()),
    "a sampler of somebody's own": ("own sampler", None, ()),
    "the loss function": ("map", draws_in_the_loss, ()),
    "callbacks": ("map", None, (DrawsInHooks,)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_training_draws_the_same_numbers_with_and_without_a_validation_that_draws(tiny, source):
    kind, loss_fn, kinds = SOURCES[source]
    callbacks = [each() for each in kinds]
    without = weights_after(tiny, None, loss_fn, callbacks)
    found = weights_after(tiny, tiny.loader(kind), loss_fn, callbacks)
    assert tiny.difference(without, found) is None


def test_a_resumed_run_validates_with_the_numbers_of_the_run_that_was_killed(tiny, tmp_path):
    def work(place, kills=None):
        def loss_fn(model, batch):
            return model(batch).square().mean() + 0.1 * draw()

        options = {"eval_interval": 1, "snapshot_interval": 1, "snapshot_sync": True, "epochs": 2}
        callbacks = [tiny.killer(kills)]
        tiny.trainer(place, loss_fn=loss_fn, callbacks=callbacks, **options).train(resume="auto")

    assert tiny.child(lambda: work(tmp_path / "whole")).wait() == 0
    assert tiny.child(lambda: work(tmp_path / "killed", 25)).wait() == -9
    assert tiny.child(lambda: work(tmp_path / "killed")).wait() == 0
    states = [tiny.newest_state(tmp_path / name) for name in ("whole", "killed")]
    assert tiny.difference(*states) is None
    assert len({entry["val_loss"] for entry in states[0]["progress"]["history"]}) > 4


class Modes(TrainerCallback):
    """What mode each part is in, at each batch of the training."""

    def __init__(self):
        self.seen = []

    def on_batch_start(self, trainer):
        self.seen.append([module.training for module in trainer.model])


def test_a_part_that_was_set_to_evaluation_by_hand_stays_so():
    model = make_net()
    model[1].eval()
    modes = Modes()
    make(model, [torch.ones(4, 4)], callbacks=[modes]).train()
    assert modes.seen == [[True, False, True, True]] * 12


@pytest.mark.parametrize("hook", ["on_train_start", "on_epoch_start", "on_step_end"])
def test_a_part_that_a_callback_sets_to_evaluation_stays_so(hook):
    def freeze(self, trainer):
        trainer.model[1].eval()

    callback = type("Freeze", (TrainerCallback,), {hook: freeze})()
    modes = Modes()
    make(make_net(), [torch.ones(4, 4)], callbacks=[callback, modes]).train()
    assert modes.seen[1:] == [[True, False, True, True]] * 11


def test_a_part_that_is_thawed_in_a_later_epoch_stays_so():
    class Thaw(TrainerCallback):
        def on_epoch_start(self, trainer, epoch):
            trainer.model[1].train(epoch == 1)

    modes = Modes()
    make(make_net(), [torch.ones(4, 4)], callbacks=[Thaw(), modes]).train()
    assert [each[1] for each in modes.seen] == [False] * 6 + [True] * 6


def test_a_model_in_evaluation_mode_is_set_to_training_once_and_said(caplog):
    model = make_net().eval()
    modes = Modes()
    make(model, [torch.ones(4, 4)], callbacks=[modes]).train()
    assert modes.seen == [[True] * 4] * 12
    assert caplog.text.count("was in evaluation mode, and is in training mode now") == 1


def test_a_callback_that_leaves_the_model_in_evaluation_mode_does_so_for_that_epoch_only(caplog):
    class Forgets(TrainerCallback):
        def on_epoch_end(self, trainer):
            trainer.model.eval()

    modes = Modes()
    make(make_net(), [torch.ones(4, 4)], callbacks=[Forgets(), modes]).train()
    assert modes.seen == [[True] * 4] * 12
    assert caplog.text.count("was in evaluation mode") == 1


def test_modes_are_those_before_also_where_a_validation_fails():
    def loss_fn(model, batch):
        if not model.training:
            raise ZeroDivisionError
        return model(batch).square().mean()

    model = make_net()
    model[1].eval()
    with pytest.raises(ZeroDivisionError):
        make(model, [torch.ones(4, 4)], loss_fn=loss_fn).train()
    assert [model.training, model[1].training, model[2].training] == [True, False, True]


def test_a_shared_part_and_one_that_does_something_in_train_come_back_as_they_were():
    class Merges(nn.Linear):
        """As adapters do: in evaluation their weights are folded into those of the layer."""

        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    shared = nn.BatchNorm1d(4)
    frozen = nn.Sequential(shared)
    model = nn.Sequential(nn.Sequential(shared), frozen, Merges(4, 4), Merges(4, 1))
    frozen.training = False  # and its part, which is another's too, is not
    model[3].eval()
    seen = []

    class Look(TrainerCallback):
        def on_batch_start(self, trainer):
            parts = [frozen.training, shared.training, model[2].merged, model[3].merged]
            seen.append([model.training, *parts])

    make(model, [torch.ones(4, 4)], callbacks=[Look()]).train()
    assert seen == [[True, False, True, False, True]] * 12


def test_gradients_that_are_there_before_a_validation_are_not_touched():
    class Watch(TrainerCallback):
        def on_validation_start(self, trainer):
            self.gradients = [torch.full_like(p, 0.5) for p in trainer.model.parameters()]
            for parameter, gradient in zip(trainer.model.parameters(), self.gradients, strict=True):
                parameter.grad = gradient

        def on_validation_end(self, trainer):
            assert torch.is_grad_enabled()
            for parameter, gradient in zip(trainer.model.parameters(), self.gradients, strict=True):
                assert parameter.grad is gradient
                assert (gradient == 0.5).all()
                parameter.grad = None

    make(make_net(), [torch.ones(4, 4)] * 3, callbacks=[Watch()]).train()


def test_a_tensor_that_the_model_keeps_in_a_validation_can_be_used_in_training():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.scale = nn.Linear(4, 1), None

        def forward(self, x):
            if not self.training:
                self.scale = torch.full((1,), 2.0) * 1
            return self.line(x) * (1 if self.scale is None else self.scale)

    assert make(Caches(), [torch.ones(4, 4)]).train().status == "finished"


def peak_of_a_validation(count):
    """MB of resident memory that a validation of `count` batches of 12 MB logits adds."""
    model = nn.Linear(1, 12_000)
    data = DataLoader(torch.ones(count * 256, 1), batch_size=256)
    before = [0.0]

    class Look(TrainerCallback):
        def on_validation_start(self):
            before[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    make(
        model,
        data,
        loader=[torch.ones(1, 1)] * 4,
        loss_fn=lambda model, batch: model(batch).mean(),
        callbacks=[Look()],
        epochs=1,
        eval_interval=None,
    ).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before[0]


def test_the_memory_of_a_validation_does_not_grow_with_its_batches(tiny, tmp_path):
    def work():
        (tmp_path / "peak").write_text(str(peak_of_a_validation(400)))

    assert tiny.child(work).wait() == 0
    assert float((tmp_path / "peak").read_text()) < 50


def test_the_mean_is_exact_over_many_batches_of_uneven_size():
    sizes = [1 + 7 * i % 13 for i in range(600)]
    losses = [1e4 + 0.1 * i for i in range(600)]
    batches = [torch.full((n, 4), x) for n, x in zip(sizes, losses, strict=True)]

    def loss_fn(model, batch):
        if model.training:
            return model(batch).square().mean()
        return batch[0, 0]

    result = make(nn.Linear(4, 1), batches, loss_fn=loss_fn, epochs=1, eval_interval=None).train()
    exact = [float(torch.tensor(x)) for x in losses]
    expected = sum(n * x for n, x in zip(sizes, exact, strict=True)) / sum(sizes)
    assert result.val_loss == pytest.approx(expected, rel=1e-14)


def test_an_epoch_that_is_cut_behind_a_validation_is_not_validated_again(tmp_path):
    class Count(TrainerCallback):
        def on_validation_start(self):
            seen.append("validation")

        def on_epoch_end(self, val_loss, metrics):
            seen.append((val_loss, metrics["val_loss"]))

    seen = []
    options = {"callbacks": [Count()], "max_steps": 4, "output_dir": tmp_path / "run"}
    result = make(make_net(), [torch.ones(2, 4)], **options).train()
    assert seen == ["validation", "validation", (result.val_loss,) * 2]
    seen.clear()
    again = make(make_net(), [torch.ones(2, 4)], **options).train(resume=True)
    assert seen == [(result.val_loss,) * 2]
    assert again.val_loss == result.val_loss
