"""What no snapshot keeps is said, where it can be seen."""

import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from trainer import Trainer, TrainerConfig

ITEMS = [torch.full((4,), float(i)) for i in range(8)]


class Order(Sampler):
    """Draws each order from a generator of its own."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 8

    def __iter__(self):
        self.draw_numbers()
        return iter(range(8))


class PythonOrder(Order):
    def draw_numbers(self):
        self.draw.random()


class NumpyOrder(Order):
    def draw_numbers(self):
        self.draw.random(3)


class OldNumpyOrder(Order):
    def draw_numbers(self):
        self.draw.rand(3)


class TorchOrder(Order):
    def draw_numbers(self):
        torch.rand(3, generator=self.draw)


class CountingOrder(Order):
    def draw_numbers(self):
        self.draw += 1


class FollowingOrder(CountingOrder):
    def set_epoch(self, epoch):
        self.draw = epoch


class SeededOrder(Sampler):
    def __init__(self):
        self.generator = torch.Generator()

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(torch.randperm(8, generator=self.generator).tolist())


class Augmented(Dataset):
    def __init__(self):
        self.chance, self.served = random.Random(3), 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.served += 1
        return ITEMS[index] + self.chance.random()


class OwnLoader:
    """Its place is inside an epoch only."""

    def __init__(self):
        self.place, self.epochs = 0, 0

    def __len__(self):
        return 4

    def __iter__(self):
        for self.place in range(1, 5):
            yield torch.ones(2, 4)
        self.place = 0
        self.count()

    def count(self):
        pass


class CountingLoader(OwnLoader):
    def count(self):
        self.epochs += 1


class Statistics(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        persistent = kind == "persistent"
        self.register_buffer("seen", torch.zeros(2), persistent=persistent)
        self.register_buffer("unknown", torch.tensor([float("nan")]), persistent=False)

    def forward(self, x):
        if self.kind in ("changes", "persistent"):
            self.seen += 1
        if self.kind == "is assigned":
            self.seen = self.seen + 1
        if self.kind == "grows":
            self.seen = torch.zeros(len(self.seen) + 1)
        return x


def train(tmp_path, loader, kind="constant", **config):
    model = nn.Sequential(Statistics(kind), nn.Linear(4, 1))
    settings = {"epochs": 4, "snapshot_epochs": True, "output_dir": tmp_path, **config}
    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        loader,
        loss_fn=lambda model, batch: model(batch).mean(),
        config=TrainerConfig(**settings),
        discover=False,
    ).train()


def load(sampler=None, data=ITEMS):
    return DataLoader(data, batch_size=2, sampler=sampler)


SEEN = {
    "random.Random": (lambda: load(PythonOrder(random.Random(0))), "'draw' of the sampler PythonO"),
    "numpy": (lambda: load(NumpyOrder(numpy.random.default_rng(0))), "'draw' of the sampler"),
    "RandomState": (lambda: load(OldNumpyOrder(numpy.random.RandomState(0))), "'draw' of the"),
    "torch": (lambda: load(TorchOrder(torch.Generator())), "'draw' of the sampler TorchOrder"),
    "a number": (lambda: load(CountingOrder(0)), "'draw' of the sampler CountingOrder"),
    "a data set's": (lambda: load(None, Augmented()), "'chance' of the data set Augmented"),
    "a subset's": (lambda: load(None, Subset(Augmented(), range(8))), "of the data set Augmented"),
    "a loader's": (CountingLoader, "'epochs' of the loader CountingLoader"),
}


@pytest.mark.parametrize("case", SEEN)
def test_what_changes_from_epoch_to_epoch_on_the_data_side_is_said_once(tmp_path, caplog, case):
    make, text = SEEN[case]
    train(tmp_path, make(), snapshot_interval=1)
    assert caplog.text.count("no snapshot keeps") == 1
    assert text in caplog.text


QUIET = {
    "set_epoch": lambda: load(FollowingOrder(0)),
    "a generator that the trainer seeds": lambda: load(SeededOrder()),
    "shuffle": lambda: DataLoader(ITEMS, batch_size=2, shuffle=True),
    "a place inside the epoch": OwnLoader,
    "a list": lambda: [torch.ones(2, 4)] * 3,
    "workers": lambda: DataLoader(ITEMS, batch_size=2, shuffle=True, num_workers=1),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_a_resumed_run_has_again_is_not_spoken_of(tmp_path, caplog, case):
    train(tmp_path, QUIET[case](), snapshot_interval=1)
    assert "no snapshot keeps" not in caplog.text


def test_a_run_without_snapshots_is_told_nothing(caplog):
    train(None, load(CountingOrder(0)), "changes", snapshot_epochs=False)
    assert "no snapshot keeps" not in caplog.text


@pytest.mark.parametrize("kind", ["changes", "is assigned"])
def test_a_buffer_that_changes_and_is_not_persistent_is_said_once(tmp_path, caplog, kind):
    train(tmp_path, load(), kind, snapshot_interval=1, epochs=1)
    assert caplog.text.count("no snapshot keeps the buffer 0.seen, which changes") == 1


@pytest.mark.parametrize("kind", ["constant", "persistent", "grows"])
def test_a_buffer_that_is_kept_or_a_cache_is_not_spoken_of(tmp_path, caplog, kind):
    train(tmp_path, load(), kind, snapshot_interval=1)
    assert "no snapshot keeps" not in caplog.text
