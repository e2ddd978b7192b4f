"""An epoch of a loader is what a plain `for batch in loader` is, to its end."""

import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from trainer import Trainer, TrainerConfig
from trainer.data.loaders import EpochLoader

EPOCHS = 3


class Shuffle(Sampler):
    """Counts its own epochs, behind its last item."""

    def __init__(self, count=8):
        self.count, self.epoch = count, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        yield from random.Random(self.epoch).sample(range(self.count), self.count)
        self.epoch += 1


class Own:
    """A loader that is put back at its end, and gives nothing if it was not."""

    def __init__(self, length=4, promised=None):
        self.length, self.at, self.ends = length, 0, 0
        self.promised = length if promised is None else promised

    def __len__(self):
        return self.promised

    def __iter__(self):
        while self.at < self.length:
            self.at += 1
            yield torch.full((2, 4), float(self.at + 10 * self.ends))
        self.at = 0
        self.ends += 1


class OwnWithoutLength(Own):
    __len__ = None


class Stream(IterableDataset):
    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 8

    def __iter__(self):
        for i in range(8):
            yield torch.full((4,), float(i + 10 * self.epoch))
        self.epoch += 1


ITEMS = [torch.full((4,), float(i)) for i in range(8)]
LOADERS = {
    "a sampler": lambda: DataLoader(ITEMS, batch_size=2, sampler=Shuffle()),
    "a batch sampler": lambda: DataLoader(
        ITEMS, batch_sampler=torch.utils.data.BatchSampler(Shuffle(), 2, drop_last=False)
    ),
    "a sampler, with workers": lambda: DataLoader(
        ITEMS, batch_size=2, sampler=Shuffle(), num_workers=1
    ),
    "a sampler, with workers that outlive an epoch": lambda: DataLoader(
        ITEMS, batch_size=2, sampler=Shuffle(), num_workers=1, persistent_workers=True
    ),
    "an iterable data set": lambda: DataLoader(Stream(), batch_size=2),
    "a loader of somebody's own": Own,
    "a loader of somebody's own, of no length": OwnWithoutLength,
}


def train(loader, val_loader=None, **config):
    seen = []

    def loss_fn(model, batch):
        seen.append(batch.tolist())
        return model(batch).square().mean()

    model = nn.Linear(4, 1)
    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        loader,
        val_loader,
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": EPOCHS, **config}),
        discover=False,
    ).train()
    return seen


@pytest.mark.parametrize("case", LOADERS)
def test_several_epochs_are_those_of_a_plain_for(case):
    plain = LOADERS[case]()
    expected = [batch.tolist() for _ in range(EPOCHS) for batch in plain]
    found = train(LOADERS[case]())
    assert found == expected
    assert found[:4] != found[4:8]


@pytest.mark.parametrize("case", LOADERS)
def test_several_validations_are_those_of_a_plain_for(case):
    plain = LOADERS[case]()
    expected = [batch.tolist() for _ in range(EPOCHS) for batch in plain]
    found = train([torch.zeros(1, 4)], LOADERS[case]())
    assert [batch for batch in found if batch != [[0.0] * 4]] == [
        batch for batch in expected if batch != [[0.0] * 4]
    ]


def test_an_epoch_that_is_cut_is_not_at_its_end():
    loader = Own()
    train(loader, max_steps=3)
    assert loader.ends == 0


def test_an_epoch_whose_last_update_is_the_last_of_the_run_is_at_its_end():
    loader = Own()
    train(loader, max_steps=4)
    assert loader.ends == 1


def test_the_end_comes_after_the_last_batch_was_trained():
    order = []

    class Watched(Own):
        def __iter__(self):
            yield from super().__iter__()
            order.append("end")

    loader = Watched()
    model = nn.Linear(4, 1)

    def loss_fn(model, batch):
        order.append("batch")
        return model(batch).mean()

    Trainer(
        model,
        torch.optim.SGD(model.parameters()),
        loader,
        loss_fn=loss_fn,
        config=TrainerConfig(epochs=1),
        discover=False,
    ).train()
    assert order == ["batch"] * 4 + ["end"]


def test_an_epoch_that_goes_on_after_a_resume_is_brought_to_its_end(tiny, tmp_path):
    def loader():
        return DataLoader(ITEMS, batch_size=2, sampler=Shuffle())

    options = {"snapshot_interval": 1, "val": False, "epochs": 3}
    tiny.trainer(tmp_path / "whole", loader=loader(), **options).train()
    tiny.trainer(tmp_path / "cut", loader=loader(), max_steps=2, **options).train()
    second = loader()
    tiny.trainer(tmp_path / "cut", loader=second, **options).train(resume=True)
    assert second.sampler.epoch == 3
    states = [tiny.newest_state(tmp_path / name)["model"] for name in ("whole", "cut")]
    assert tiny.difference(*states) is None


@pytest.mark.parametrize("kind", ["train", "validation"])
def test_a_loader_that_has_more_than_it_promised_is_said_once(caplog, kind):
    class Longer(list):
        def __len__(self):
            return 3

    longer = Longer([torch.ones(2, 4)] * 5)
    if kind == "train":
        assert len(train(longer)) == 9
    else:
        train([torch.ones(2, 4)], longer)
    assert caplog.text.count(f"the {kind} loader promises 3 batches and has more") == 1


@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize("length", [4, 5])
def test_every_process_brings_its_loader_to_its_end(tiny, tmp_path, in_step, length):
    def work(rank):
        from trainer.processes.group import join_ranks

        own = Own(length)
        loader = EpochLoader(own, 0, "train", join_ranks("cpu"), in_step=in_step)
        for _ in range(2):
            list(loader.iterate(0))
        (tmp_path / str(rank)).write_text(str(own.ends))

    assert tiny.run_ranks(work) == [0, 0]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]
