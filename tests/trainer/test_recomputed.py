"""Activations that are computed again in the backward pass: the same bits, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from trainer import ConfigError, Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

from .conftest import difference, newest_state, run_ranks

DATA = torch.arange(64.0).reshape(16, 4).sin()


class Block(nn.Module):
    """Draws random numbers, counts, and changes a buffer that its output depends on."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("turn", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.turn += 1
        return x + self.dropout(torch.tanh(self.linear(self.norm(x)))) * self.turn


class Net(nn.Module):
    def __init__(self, block=Block):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(model=None, *, block=Block, place=None, callbacks=(), compiled=None, **config):
    torch.manual_seed(0)
    model = Net(block) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(
        model if compiled is None else compiled(model),
        optimizer,
        [DATA[:8], DATA[8:]],
        [DATA],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, **{"epochs": 2, **config}),
        callbacks=callbacks,
        discover=False,
    )


@pytest.mark.parametrize("pattern", ["blocks.*", "blocks.0, head", "blocks.1.dropout", "blocks.?"])
def test_the_run_is_the_same_bit_by_bit(tmp_path, pattern):
    make(place=tmp_path / "a").train()
    trainer = make(place=tmp_path / "b", checkpoint_activations=pattern)
    trainer.train()
    states = [newest_state(tmp_path / name) for name in "ab"]
    for part in ("model", "optimizer", "rng", "progress"):
        assert difference(*(each[part] for each in states)) is None
    if pattern == "blocks.*":
        assert trainer.model.blocks[0].calls == 4 * 2 + 2  # twice a batch, once a validation


def test_nothing_is_kept_of_what_is_computed_again():
    def count(**config):
        kept = []
        trainer = make(epochs=1, **config)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(1) or x, lambda x: x):
            trainer.train()
        return len(kept)

    assert count(checkpoint_activations="blocks.*") < count() / 2


def test_a_resume_is_exact_and_may_do_without(tmp_path):
    make(place=tmp_path / "whole").train()
    make(place=tmp_path / "cut", epochs=1, checkpoint_activations="blocks.*").train()
    make(place=tmp_path / "cut").train(resume=True)
    states = [newest_state(tmp_path / name)["model"] for name in ("whole", "cut")]
    assert difference(*states) is None


def test_two_processes_train_the_same(tmp_path):
    def work(rank):
        plain, again = make(), make(checkpoint_activations="blocks.*")
        plain.train()
        again.train()
        states = [each.model.state_dict() for each in (plain, again)]
        assert difference(*(dict(each) for each in states)) is None

    assert run_ranks(work) == [0, 0]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return x + self.inner(x) * self.scale


def test_a_compiled_model_trains_the_same():
    def compiled(model):
        return torch.compile(model, backend="aot_eager", fullgraph=True)

    plain = make(block=Plain, compiled=compiled)
    plain.train()
    again = make(block=Plain, compiled=compiled, checkpoint_activations="blocks.*")
    again.train()
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(value, again.model.state_dict()[name], atol=1e-6), name


REFUSED = {
    "block.*": r"no module is called 'block\.\*'\. Did you mean 'blocks\.\*'\? There are blocks, ",
    "blocks": r"blocks is a ModuleList, which is never called itself.*: blocks\.\*\.$",
    "*": r"blocks is a ModuleList",
    "head,tail": "no module is called 'tail'",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_names_nothing_is_refused_with_names_that_exist(pattern):
    with pytest.raises(ConfigError, match=REFUSED[pattern]):
        make(checkpoint_activations=pattern)


def test_a_norm_in_a_compiled_model_is_refused():
    with pytest.raises(ConfigError, match="has a BatchNorm1d, whose means would be counted twice"):
        make(checkpoint_activations="blocks.*", compile=True)


@pytest.mark.parametrize("value", ["", " ", 3, ["blocks.*"]])
def test_what_is_no_pattern_is_refused(value):
    with pytest.raises(ConfigError, match="checkpoint_activations must be names of modules"):
        TrainerConfig(checkpoint_activations=value)


def test_names_and_classes_stay_and_copies_are_plain():
    model = Net()
    names = list(model.state_dict())
    make(model, checkpoint_activations="blocks.*")
    changed = type(model.blocks[0])
    assert list(model.state_dict()) == names
    assert isinstance(model.blocks[0], Block)
    assert changed.__qualname__ == "Block"
    assert changed is not Block
    assert type(copy.deepcopy(model).blocks[0]) is Block
    assert type(pickle.loads(pickle.dumps(model)).blocks[0]) is Block


def test_a_later_run_of_the_same_model_does_without():
    model = Net()
    make(model, checkpoint_activations="blocks.*")
    make(model)
    assert type(model.blocks[0]) is Block


def test_parts_of_several_models_are_named_by_theirs():
    models = {"g": Net(Plain), "d": Net(Plain)}
    optimizers = {n: torch.optim.SGD(m.parameters(), lr=0.1) for n, m in models.items()}
    config = TrainerConfig(checkpoint_activations="g.blocks.*")
    Run(models, optimizers, config=config, discover=False)
    assert type(models["g"].blocks[0]) is not Plain
    assert type(models["d"].blocks[0]) is Plain


def test_hooks_and_validation_see_the_module(tmp_path):
    class Looks(TrainerCallback):
        called = 0

        def on_train_start(self, trainer):
            trainer.model.blocks[0].register_forward_hook(self.count)

        def count(self, module, arguments, output):
            self.called += 1

    looks = Looks()
    make(checkpoint_activations="blocks.*", callbacks=[looks]).train()
    assert looks.called == 2 * 2 + 2
