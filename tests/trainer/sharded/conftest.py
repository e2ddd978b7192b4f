"""Models that `fully_shard` has divided over two processes, and what one process does instead."""

import json
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer.processes.group import join_ranks


def shard(*modules, **options):
    """Divides each of `modules` over both processes, the inner ones first."""
    from torch.distributed.fsdp import fully_shard

    join_ranks("cpu")
    with warnings.catch_warnings():  # of torch about itself, where there is no accelerator
        warnings.simplefilter("ignore")
        for module in modules:
            fully_shard(module, **options)


class Stream:
    """Batches that nobody can count beforehand."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def make_trainer(
    place,
    *,
    divided=True,
    items=32,
    validated=12,
    batches=None,
    callbacks=(),
    loss_fn=None,
    optimizer=torch.optim.AdamW,
    norm=None,
    mesh=None,
    **config,
):
    """A trainer in double, so that W processes do what one does with W batches an update."""
    torch.manual_seed(7)
    norm = norm if norm is not None else nn.LayerNorm(7)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), norm, nn.Linear(7, 1)).double()
    if divided:
        shard(model[0], model, **({} if mesh is None else {"mesh": mesh()}))
    settings = {"epochs": 2, "seed": 5, "log_interval": 1, "max_grad_norm": 0.5, **config}
    data = torch.arange(400.0).reshape(100, 4).sin().double()
    return Trainer(
        model,
        optimizer(model.parameters(), lr=0.01),
        batches or DataLoader(data[:items], batch_size=4, shuffle=True),
        Stream(validated) if isinstance(validated, list) else DataLoader(data[-validated:], 4),
        loss_fn=loss_fn or (lambda model, batch: model(batch).square().mean()),
        config=TrainerConfig(output_dir=place, **settings),
        callbacks=list(callbacks),
        discover=False,
    )


def read_log(place):
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "callback_costs" not in line]
    return [{name: line[name] for name in line if name != "_time"} for line in logged]


def same_log(one, other):
    return len(one) == len(other) and all(
        a == pytest.approx(b, rel=1e-9) for a, b in zip(one, other, strict=True)
    )


def apart(one, other):
    """The greatest difference of two models' states."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def replicas():
    """A mesh of two copies of the model, each divided over two of four processes."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))


@pytest.fixture(scope="session")
def sharded():
    """The functions above, for tests."""

    class Sharded:
        shard = staticmethod(shard)
        trainer = staticmethod(make_trainer)
        replicas = staticmethod(replicas)
        read_log = staticmethod(read_log)
        same_log = staticmethod(same_log)
        apart = staticmethod(apart)

    return Sharded
