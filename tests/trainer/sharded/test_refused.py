"""What cannot be trained is refused before the first step, by all processes."""

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.processes.group import join_ranks
from trainer.processes.sharding import check_sharding


def test_a_validation_without_a_batch_for_each_process_is_refused(tiny, sharded):
    def work(rank):
        with pytest.raises(ConfigError, match=r"validation loader has 1 batches for 2 processes"):
            sharded.trainer(None, validated=4)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_that_is_divided_in_part_only_is_refused(tiny, sharded, frozen):
    """Also where nothing but a frozen part is divided."""

    def work(rank):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        model[1].requires_grad_(not frozen)
        sharded.shard(model[1])
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        with pytest.raises(ConfigError, match=r"0\.weight is not sharded, and 1\.weight is"):
            Trainer(model, optimizer, [1, 2], discover=False)

    assert tiny.run_ranks(work) == [0, 0]


def test_tensor_parallelism_is_refused(tiny, sharded):
    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        join_ranks("cpu")
        model = parallelize_module(
            nn.Linear(4, 8), init_device_mesh("cpu", (2,)), ColwiseParallel()
        )
        with pytest.raises(ConfigError, match="tensor and pipeline parallelism are not supported"):
            Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), [1, 2], discover=False)

    assert tiny.run_ranks(work) == [0, 0]


def test_an_optimizer_of_the_whole_weights_is_refused(tiny, sharded):
    def work(rank):
        model = nn.Linear(4, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharded.shard(model)
        with pytest.raises(ConfigError, match=r"after fully_shard"):
            Trainer(model, optimizer, [1, 2], discover=False)

    assert tiny.run_ranks(work) == [0, 0]


def test_a_mesh_of_other_devices_is_refused(tiny, sharded):
    def work(rank):
        model = nn.Linear(4, 8)
        sharded.shard(model)
        with pytest.raises(ConfigError, match=r"over cpu devices, and the run's device is meta"):
            check_sharding(model, 2, torch.device("meta"))

    assert tiny.run_ranks(work) == [0, 0]


def test_a_frozen_part_may_be_whole(tiny, sharded):
    def work(rank):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        model[0].requires_grad_(False)
        sharded.shard(model[1])
        batches = [torch.ones(2, 4)] * 4
        trainer = Trainer(
            model,
            torch.optim.SGD(model[1].parameters(), lr=0.1),
            batches,
            loss_fn=lambda model, batch: model(batch).square().mean(),
            config=TrainerConfig(output_dir=None, epochs=1, max_grad_norm=1.0),
            discover=False,
        )
        assert trainer.train().steps == 2

    assert tiny.run_ranks(work) == [0, 0]


def test_weights_that_wait_on_the_host_for_a_card_are_refused(tiny, sharded):
    """The mesh of CPUs is said to be one of cards: then the parts lie where nothing computes."""

    def work(rank):
        from torch.distributed.fsdp import CPUOffloadPolicy

        model = nn.Linear(4, 8)
        sharded.shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
        model.weight.device_mesh._device_type = "cuda"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ConfigError, match=r"CPUOffloadPolicy is not supported\. Call"):
            Trainer(model, optimizer, [1, 2], discover=False)

    assert tiny.run_ranks(work) == [0, 0]


def test_offloading_to_the_cpu_that_computes_changes_nothing(tiny, sharded):
    def work(rank):
        from torch.distributed.fsdp import CPUOffloadPolicy

        found = []
        for options in ({}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            sharded.shard(model, **options)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            config = TrainerConfig(epochs=1, max_grad_norm=0.01, device="cpu")
            batches = [*torch.arange(48.0).reshape(6, 2, 4).sin()]
            Trainer(
                model,
                optimizer,
                batches,
                loss_fn=lambda model, batch: model(batch).square().mean(),
                config=config,
                discover=False,
            ).train()
            found.append([each.full_tensor() for each in model.parameters()])
        assert all(map(torch.equal, *found))

    assert tiny.run_ranks(work) == [0, 0]
