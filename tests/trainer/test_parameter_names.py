"""The optimizer's state belongs to parameters by name, in whatever order a run lists them."""

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots, write_snapshot
from trainer.snapshots.state_file import load_state, save_state
from trainer_callback import SnapshotError


def two_layers():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def make(place, order, *, model=two_layers, optimizer=torch.optim.AdamW, steps=3):
    torch.manual_seed(3)
    built = model()
    torch.manual_seed(4)
    return Trainer(
        built,
        optimizer(order(built), lr=0.01),
        [torch.randn(2, 4) for _ in range(8)],
        loss_fn=lambda model, batch: (model(batch) - batch).square().mean(),
        config=TrainerConfig(output_dir=place, epochs=1, max_steps=steps),
        discover=False,
    )


def forwards(model):
    return [*model.parameters()]


def backwards(model):
    return [*model.parameters()][::-1]


def named(model):
    return [*model.named_parameters()]


def named_backwards(model):
    return [*model.named_parameters()][::-1]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
@pytest.mark.parametrize("second", [forwards, backwards, named, named_backwards])
def test_another_order_of_the_parameters_is_matched_by_name(tmp_path, second, optimizer):
    whole = make(None, forwards, optimizer=optimizer, steps=6)
    whole.train()
    make(tmp_path, forwards, optimizer=optimizer).train()
    resumed = make(tmp_path, second, optimizer=optimizer, steps=6)
    resumed.train(resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_names_of_the_optimizer_are_in_its_own_order_after_a_resume(tmp_path):
    make(tmp_path, named).train()
    resumed = make(tmp_path, named_backwards, steps=6)
    resumed.train(resume=True)
    (group,) = resumed.optimizer.param_groups
    assert group["param_names"] == [name for name, _ in named_backwards(resumed.model)]


def test_another_order_and_a_second_resume(tmp_path):
    whole = make(None, forwards, steps=8)
    whole.train()
    for order, steps in ((forwards, 3), (backwards, 5), (forwards, 8)):
        last = make(tmp_path, order, steps=steps)
        last.train(resume="auto")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, last.model.state_dict()[name]), name


def test_an_optimizer_over_other_parameters_is_refused_with_their_names(tmp_path):
    make(tmp_path, lambda model: model[1].parameters()).train()
    with pytest.raises(SnapshotError, match=r"'0\.weight'.* was not in the optimizer"):
        make(tmp_path, forwards, steps=6).train(resume=True)


def test_an_optimizer_over_fewer_parameters_is_refused_with_their_names(tmp_path):
    make(tmp_path, forwards).train()
    with pytest.raises(SnapshotError, match=r"'0\.weight'.* is not in this run's"):
        make(tmp_path, lambda model: model[1].parameters(), steps=6).train(resume=True)


def test_parameters_in_other_groups_are_refused_with_a_name(tmp_path):
    def grouped(*parts):
        return lambda model: [
            {"params": [model.get_parameter(name) for name in part]} for part in parts
        ]

    a, b, c, d = "0.weight", "0.bias", "1.weight", "1.bias"
    make(tmp_path, grouped([a, b], [c, d])).train()
    for other in ([[a, c], [b, d]], [[a, b, c], [d]], [[a, b, c, d]]):
        with pytest.raises(SnapshotError, match=r"'\d\.\w+' was in group \d .* is in group \d"):
            make(tmp_path, grouped(*other), steps=6).train(resume=True)
    make(tmp_path, grouped([b, a], [d, c]), steps=6).train(resume=True)


def test_a_parameter_that_was_frozen_can_be_trained_after_a_resume(tmp_path):
    def freeze(model):
        model[0].requires_grad_(False)
        return forwards(model)

    make(tmp_path, freeze).train()
    resumed = make(tmp_path, backwards, steps=6)
    before = resumed.model[0].weight.detach().clone()
    resumed.train(resume=True)
    assert not torch.equal(before, resumed.model[0].weight)


class Tied(nn.Module):
    def __init__(self, *, turned=False):
        super().__init__()
        parts = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}
        parts["first"].weight = parts["second"].weight
        for name in sorted(parts, reverse=turned):
            self.add_module(name, parts[name])

    def forward(self, x):
        return self.second(self.first(x))


def test_a_tied_weight_is_known_by_each_of_its_names(tmp_path):
    whole = make(None, forwards, model=Tied, steps=6)
    whole.train()
    make(tmp_path, forwards, model=Tied).train()
    resumed = make(tmp_path, forwards, model=lambda: Tied(turned=True), steps=6)
    resumed.train(resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_snapshot_without_names_is_matched_by_position(tmp_path):
    whole = make(None, forwards, steps=6)
    whole.train()
    make(tmp_path, forwards).train()
    (path,) = list_snapshots(tmp_path / "snapshots")
    state, manifest = load_state(path)
    del state["parameters"], state["data"], state["frozen"]
    write_snapshot(path, {"state.pt": save_state(state)}, manifest)
    resumed = make(tmp_path, forwards, steps=6)
    resumed.train(resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def frozen_run(place, names, **config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4)] * 4,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, device="cpu", **{"epochs": 1, **config}),
        discover=False,
    )


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (["0.weight", "0.bias"], [], "0.weight (and 1 more) was not trained"),
        ([], ["1.bias"], "1.bias was trained"),
        (["0.bias"], ["0.bias"], None),
    ],
)
def test_a_parameter_that_is_frozen_or_freed_at_a_resume_is_told(
    tmp_path, caplog, before, now, told
):
    frozen_run(tmp_path, before, max_steps=1).train()
    caplog.clear()
    frozen_run(tmp_path, now).train(resume=True)
    texts = [each for each in caplog.messages if "trained" in each]
    assert len(texts) == (told is not None)
    assert all(told in text for text in texts)


def test_a_group_that_is_empty_and_too_many_is_refused_with_both_numbers(tmp_path):
    def in_groups(*empty):
        return lambda model: [{"params": [*model.parameters()]}, *empty]

    make(tmp_path, in_groups()).train()
    resumed = make(tmp_path, in_groups({"params": []}), steps=6)
    with pytest.raises(SnapshotError, match="it had 1 groups of parameters, and has 2 in this run"):
        resumed.train(resume=True)
