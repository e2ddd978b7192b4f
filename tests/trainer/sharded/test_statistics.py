"""Gradients of which each process holds a part: the numbers are those of the whole."""

import math

import pytest
import torch
from torch import nn

from trainer.processes.group import join_ranks
from trainer.step.gradients import Gradients

SHAPES = {
    "even": (40, 30),
    "odd": (5, 3),
    "first_only": (1, 6),  # nothing of it is left for the second process
    "long": (3, 100_001),  # the first part is cut into blocks, the second is not
    "bias": (3,),
}


def make_weights():
    """A module of parameters with gradients of many sizes, some zero, some far from zero."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Module()
    for at, (name, shape) in enumerate(SHAPES.items()):
        gradient = torch.randn(shape, generator=generator) * 10.0 ** (at - 2) + at
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = gradient * (gradient > 0)
        model.register_parameter(name, parameter)
    return model


def divide(sharded, model):
    """Divides parameters and gradients over both processes."""
    from torch.distributed.tensor import distribute_tensor

    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    sharded.shard(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)


GROUPS = {"two": ["odd", "even"], "small": ["first_only"], "all": [*SHAPES]}


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_statistics_of_two_ranks_are_those_of_one(tiny, sharded, norm_type):
    expected = Gradients(make_weights()).stats(GROUPS, norm_type)

    def work(rank):
        model = make_weights()
        divide(sharded, model)
        assert (model.first_only.grad.to_local().numel() == 0) == (rank == 1)
        found = Gradients(model).stats(GROUPS, norm_type)
        assert found.rows == expected.rows
        torch.testing.assert_close(found.values, expected.values, rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(found.total_norm, expected.total_norm, rtol=1e-6, atol=0)

    assert tiny.run_ranks(work) == [0, 0]


def test_copies_on_a_mesh_of_replicas_count_once(tiny, sharded):
    expected = Gradients(make_weights()).stats(GROUPS)

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        join_ranks("cpu")
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
        model = make_weights()
        for name, parameter in [*model.named_parameters()]:
            place = mesh, (Replicate(), Shard(0))
            divided = nn.Parameter(distribute_tensor(parameter.detach(), *place))
            divided.grad = distribute_tensor(parameter.grad, *place)
            setattr(model, name, divided)
        found = Gradients(model).stats(GROUPS)
        torch.testing.assert_close(found.values, expected.values, rtol=2e-6, atol=1e-7)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_entry_in_one_ranks_part_is_counted_by_both(tiny, sharded, bad):
    def work(rank):
        model = make_weights()
        divide(sharded, model)
        if rank == 1:
            model.odd.grad.to_local()[0, 0] = bad
        stats = Gradients(model).stats({"odd": ["odd"], "even": ["even"]})
        rows = {row: stats.values[stats.rows.index(row)] for row in stats.rows}
        assert rows["odd"][stats.columns.index("nonfinite")] == 1
        assert not rows["odd"][stats.columns.index("norm")].isfinite()
        assert rows["even"].isfinite().all()
        assert not stats.total_norm.isfinite()

    assert tiny.run_ranks(work) == [0, 0]


def test_clipping_scales_every_part_by_the_norm_of_the_whole(tiny, sharded):
    plain = make_weights()
    expected, _ = Gradients(plain).clip(0.5)

    def work(rank):
        model = make_weights()
        divide(sharded, model)
        norm, clipped = Gradients(model).clip(0.5)
        assert clipped
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        for name, parameter in model.named_parameters():
            wanted = plain.get_parameter(name).grad
            torch.testing.assert_close(parameter.grad.full_tensor(), wanted, rtol=2e-6, atol=0)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("kind", ["whole", "part"])
def test_a_part_that_somebody_changed_is_measured_again(tiny, sharded, kind):
    def work(rank):
        model = make_weights()
        divide(sharded, model)
        gradients = Gradients(model)
        before = gradients.total_norm()
        for parameter in model.parameters():
            (parameter.grad if kind == "whole" else parameter.grad.to_local()).mul_(2)
        torch.testing.assert_close(gradients.total_norm(), 2 * before)

    assert tiny.run_ranks(work) == [0, 0]
