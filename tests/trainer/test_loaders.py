"""Loaders that are empty, dry up, fail or die; their order and position."""

import itertools
import os
import re
import signal
import time
from pathlib import Path

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from trainer import ConfigError, Trainer
from trainer.data.loaders import EmptyLoaderError, EpochLoader

DATA = TensorDataset(torch.arange(10.0))


def batches_of(loader, epoch, **options):
    return [
        batch[0].tolist() for batch, _ in EpochLoader(loader, 3, "train").iterate(epoch, **options)
    ]


def test_an_empty_train_loader_is_refused_with_sizes_and_drop_last(tiny):
    empty = DataLoader(tiny.items(3), batch_size=4, drop_last=True)
    text = r"the train loader is empty \(3 items, batch size 4, drop_last=True\)"
    with pytest.raises(ConfigError, match=text):
        tiny.trainer(None, snapshot_interval=None, loader=empty)


def test_an_empty_validation_loader_is_refused(tiny):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ConfigError, match="the validation loader is empty"):
        Trainer(model, optimizer, [torch.ones(2, 4)], [])


def refused(train_loader, val_loader=None):
    model = torch.nn.Linear(4, 1)
    with pytest.raises(ConfigError) as caught:
        Trainer(
            model,
            torch.optim.SGD(model.parameters()),
            train_loader,
            val_loader,
            discover=False,
        )
    return str(caught.value)


class FeaturesOnly:
    """A data set that is no torch.utils.data.Dataset: rows, one or several at a time."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(self.__getitems__(range(3)))

    def __getitems__(self, indices):
        return [{"x": i} for i in indices]


class Rows(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(3, 4))


NO_LOADERS = {
    "a tensor": (torch.ones(8, 4), r"a Tensor of shape \(8, 4\).*DataLoader\(TensorDataset"),
    "an array": (numpy.ones((8, 4)), r"a ndarray of shape \(8, 4\).*DataLoader\(TensorDataset"),
    "a data set": (DATA, r"the data set TensorDataset.*DataLoader\(dataset, batch_size=32\)"),
    "an iterable data set": (Rows(), r"the data set Rows.*batch_size=None if each"),
    "a foreign data set": (FeaturesOnly(), "the data set FeaturesOnly"),
    "a class": (DataLoader, "the class DataLoader.*Pass a DataLoader"),
    "a path": ("data.txt", "a str, which cannot be iterated over batches"),
    "a number": (3, "a int, which cannot be iterated over batches"),
    "a list of loaders": ([DataLoader(DATA)] * 2, "a list of 2, and has to be one.*ConcatDataset"),
    "a tuple of loaders": ((DataLoader(DATA),), "a tuple of 1, and has to be one"),
    "a dict of loaders": ({"clean": DataLoader(DATA)}, "a dict of 1, .*val_loader takes a mapping"),
}


@pytest.mark.parametrize("kind", NO_LOADERS)
def test_what_is_no_loader_is_refused_with_what_would_be_one(kind):
    loader, text = NO_LOADERS[kind]
    assert re.search("the train loader is " + text, refused(loader))
    if not isinstance(loader, dict):  # which is a validation set each
        assert re.search("the validation loader is " + text, refused([torch.ones(2, 4)], loader))


def test_a_sampler_that_pads_the_validation_is_refused():
    sampler = DistributedSampler(DATA, num_replicas=4, rank=0)
    text = refused([torch.ones(2, 4)], DataLoader(DATA, sampler=sampler))
    assert "the validation loader has a DistributedSampler, which makes 12 items of 10" in text
    assert "Leave the sampler out" in text


def test_a_sampler_that_leaves_items_out_of_the_validation_is_refused():
    sampler = DistributedSampler(DATA, num_replicas=4, rank=0, drop_last=True)
    assert "makes 8 items of 10" in refused([torch.ones(2, 4)], DataLoader(DATA, sampler=sampler))


def test_a_sampler_that_divides_the_validation_over_other_processes_is_refused():
    sampler = DistributedSampler(DATA, num_replicas=2, rank=0)
    text = refused([torch.ones(2, 4)], DataLoader(DATA, sampler=sampler))
    assert "divides the items over 2 processes, and there are 1: not each would be seen" in text


def test_a_sampler_of_ones_own_that_divides_the_validation_is_refused():
    class Padding(torch.utils.data.Sampler):
        rank, num_replicas, dataset = 0, 4, DATA

        def __len__(self):
            return 3

        def __iter__(self):
            return iter([0, 4, 8])

    text = refused([torch.ones(2, 4)], DataLoader(DATA, sampler=Padding()))
    assert "has a Padding, which makes 12 items of 10" in text


def test_a_sampler_that_divides_the_validation_evenly_is_taken(tiny):
    def work(rank):
        sampler = DistributedSampler(DATA, num_replicas=2, rank=rank)
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters())
        loader = DataLoader(DATA, sampler=sampler)
        Trainer(model, optimizer, [torch.ones(2, 4)] * 2, loader, discover=False)

    assert tiny.run_ranks(work) == [0, 0]


class Drying:
    """Has batches in its first epoch only."""

    def __init__(self):
        self.left = [torch.ones(2, 4)] * 3

    def __iter__(self):
        while self.left:
            yield self.left.pop()


def test_a_loader_that_dries_up_in_epoch_2(tiny):
    trainer = tiny.trainer(None, snapshot_interval=None, loader=Drying())
    with pytest.raises(EmptyLoaderError, match="the train loader gave no batch in epoch 1"):
        trainer.train()
    assert trainer.step == 3


def test_a_validation_loader_that_dries_up_gives_no_mean_over_zero_batches(tiny):
    model = torch.nn.Linear(4, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters()),
        [torch.ones(2, 4)],
        Drying(),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        discover=False,
    )
    with pytest.raises(EmptyLoaderError, match="the validation loader gave no batch"):
        trainer.train()
    assert [entry["val_loss"] for entry in trainer.run.position.history if "val_loss" in entry] != [
        0.0
    ]


def test_a_loader_that_promised_more(tiny):
    class Short(list):
        def __len__(self):
            return 5

    trainer = tiny.trainer(None, snapshot_interval=None, loader=Short([torch.ones(2, 4)] * 3))
    with pytest.raises(EmptyLoaderError, match="promised 5 batches in epoch 0 and gave 3"):
        trainer.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_raises_also_in_a_worker(tiny, caplog, workers):
    class Broken(tiny.items):
        def __getitem__(self, index):
            if index == 9:
                raise ZeroDivisionError("item 9")
            return super().__getitem__(index)

    loader = DataLoader(Broken(), batch_size=4, num_workers=workers)
    with pytest.raises(ZeroDivisionError, match="item 9"):
        tiny.trainer(None, snapshot_interval=None, loader=loader).train()
    assert "the train loader failed in epoch 0 at batch 2: ZeroDivisionError" in caplog.text


def test_a_killed_worker_leaves_no_process(tiny, tmp_path):
    class Deadly(tiny.items):
        def __getitem__(self, index):
            (tmp_path / f"worker-{os.getpid()}").touch()
            if index == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    def work():
        loader = DataLoader(Deadly(), batch_size=4, num_workers=2)
        try:
            tiny.trainer(None, snapshot_interval=None, loader=loader).train()
        except RuntimeError as error:
            (tmp_path / "error").write_text(str(error))
        pids = [int(path.name[7:]) for path in tmp_path.glob("worker-*")]
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
            time.sleep(0.05)
        assert len(pids) == 2
        return sum(Path(f"/proc/{pid}").exists() for pid in pids)

    assert tiny.child(work).wait() == 0
    assert "DataLoader worker" in (tmp_path / "error").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_a_function_of_seed_and_epoch(workers):
    def order(epoch):
        loader = DataLoader(DATA, batch_size=4, shuffle=True, num_workers=workers)
        torch.rand(epoch + 1)
        return batches_of(loader, epoch)

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(itertools.chain(*order(1))) == DATA.tensors[0].tolist()


def test_what_workers_draw_is_a_function_of_seed_and_epoch(tiny):
    loader = DataLoader(tiny.items(), batch_size=4, num_workers=2)

    def draws(epoch):
        return torch.cat([batch for batch, _ in EpochLoader(loader, 3, "train").iterate(epoch)])

    first = draws(0)
    assert torch.equal(draws(0), first)
    assert not torch.equal(draws(1), first)


def test_batches_are_passed_over_without_loading_them():
    loaded = []

    class Watched(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            loaded.append(index)
            return torch.tensor([float(index)])

    loader = DataLoader(Watched(), batch_size=2)
    found = [batch.flatten().tolist() for batch, _ in EpochLoader(loader, 0, "train").iterate(0, 3)]
    assert found == [[6.0, 7.0], [8.0, 9.0]]
    assert loaded == [6, 7, 8, 9]


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_the_last_batch_is_marked_where_the_length_is_not_known(length):
    class Items(IterableDataset):
        def __iter__(self):
            return iter(range(length))

    loader = EpochLoader(DataLoader(Items(), batch_size=None), 0, "train")
    if length == 0:
        with pytest.raises(EmptyLoaderError):
            list(loader.iterate(0))
        return
    assert [last for _, last in loader.iterate(0)] == [False] * (length - 1) + [True]


def test_a_loader_that_draws_leaves_the_global_generators_alone(tiny):
    loader = EpochLoader(tiny.loader("stream"), 0, "train")
    torch.manual_seed(1)
    list(loader.iterate(0))
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_a_generator_of_ones_own_is_told_to_have_no_effect_once(tiny, caplog, where):
    given = torch.Generator().manual_seed(3)
    sampler = torch.utils.data.RandomSampler(DATA, generator=given) if where == "sampler" else None
    shuffle = True if where == "loader" else None
    own = DataLoader(DATA, sampler=sampler, shuffle=shuffle, generator=given)
    loader = EpochLoader(own, 3, "train")
    text = "the generator of the train loader is not used: its numbers are drawn from seed and the"
    assert [text in line for line in caplog.messages] == [True]
    list(loader.iterate(0))
    EpochLoader(own, 3, "train")  # whose generator is the trainer's now
    EpochLoader(DataLoader(DATA, shuffle=True), 3, "train")
    assert len(caplog.messages) == 1
