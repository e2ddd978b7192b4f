"""A callback's own pass over the training data: nobody notices it."""

from __future__ import annotations

import functools
import random
from collections import deque
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainer import Run, Trainer, TrainerConfig
from trainer.data.copies import copy_loader
from trainer_callback import TrainerCallback, UsageError

HOOKS = ["on_train_start", "on_epoch_start", "on_step_end", "on_epoch_end", "on_train_end"]
KINDS = {
    "shuffled": {},
    "own sampler": {"kind": "own sampler"},
    "iterable": {"kind": "stream"},
    "own loader with a place": {"kind": "counting"},
    "own loader with set_epoch": {"kind": "set_epoch"},
    "torchdata": {"kind": "stateful"},
    "torchdata, iterable with a place": {"kind": "stateful position"},
    "workers": {"workers": 1},
    "workers that outlive an epoch": {"kind": "persistent", "workers": 1},
    "accumulated": {"gradient_accumulation_steps": 4},
}


class Passes(TrainerCallback):
    """Goes through all of it, or leaves it after a batch, in each of the hooks."""

    def __init__(self, hooks=HOOKS, leaves=False):
        self.sizes, self.leaves, self.hooks = [], leaves, hooks

    def look(self, trainer, hook):
        if hook not in self.hooks:
            return
        count = 0
        for batch in trainer.pass_over_training_data():
            count += len(batch)
            if self.leaves:
                break
        self.sizes.append(count)

    def on_train_start(self, trainer):
        self.look(trainer, "on_train_start")

    def on_epoch_start(self, trainer):
        self.look(trainer, "on_epoch_start")

    def on_step_end(self, trainer):
        if trainer.step % 3 == 1:
            self.look(trainer, "on_step_end")

    def on_epoch_end(self, trainer):
        self.look(trainer, "on_epoch_end")

    def on_train_end(self, trainer):
        self.look(trainer, "on_train_end")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_passes_beside_it_is_the_run_without_them(tiny, tmp_path, kind):
    found = []
    for name, callbacks in (("plain", []), ("passes", [Passes(), Passes(leaves=True)])):
        if callbacks:
            callbacks[1].state_key = "leaves"
        settings = {"epochs": 2, "callbacks": callbacks, **KINDS[kind]}
        tiny.trainer(tmp_path / name, **settings).train()
        found.append(tiny.newest_state(tmp_path / name))
    assert tiny.difference(*found) is None
    assert {*callbacks[0].sizes} == {24 if kind.startswith("own loader") else 22}


def square(model, batch):
    return model(batch).square().mean()


def train(loader, *callbacks, lr=0.01, **settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    config = TrainerConfig(**{"epochs": 2, "device": "cpu", **settings})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    Trainer(
        model, optimizer, loader, loss_fn=square, config=config, callbacks=callbacks, discover=False
    ).train()
    return model.weight.detach().clone()


class Noisy(Dataset):
    """Draws from a generator of its own, beneath another object."""

    def __init__(self):
        self.transform = functools.partial(self.add, random.Random(3))
        self.count = 0

    @staticmethod
    def add(chance, item):
        return item + chance.random()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.count += 1
        return self.transform(torch.full((4,), float(index))) + 0.01 * self.count


class Back:
    """An order that its own generator decides; no sampler of torch."""

    def __init__(self):
        self.chance = random.Random(5)

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(self.chance.sample(range(8), 8))


class Once:
    """An iterator that begins anew with each epoch."""

    def __iter__(self):
        self.left = 4
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return torch.full((2, 4), float(self.left))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Noisy(), batch_size=2, shuffle=True),
        lambda: DataLoader(torch.utils.data.Subset(Noisy(), range(6)), batch_size=2),
        lambda: DataLoader(torch.utils.data.ConcatDataset([Noisy(), Noisy()]), batch_size=2),
        lambda: DataLoader(torch.randn(8, 4), batch_size=2, sampler=Back()),
        Once,
        lambda: [torch.full((2, 4), float(index)) for index in range(4)],
    ],
)
def test_generators_and_counts_of_the_data_side_are_not_moved(make):
    passes = Passes()
    assert torch.equal(train(make()), train(make(), passes))
    assert len({*passes.sizes}) == 1


class Kept:
    """Shuffles in place what it keeps, and reads it as it goes."""

    def __init__(self, kept, count=100, shuffle=random.shuffle):
        self.kept, self.count, self.shuffle = kept, count, shuffle

    def __len__(self):
        return self.count

    def __iter__(self):
        parts = [self.kept]
        if not isinstance(self.kept, (list, numpy.ndarray, torch.Tensor)):
            kept = self.kept if isinstance(self.kept, (dict, deque)) else vars(self.kept)
            parts = [*(kept.values() if isinstance(kept, dict) else kept)]
        for part in parts:
            self.shuffle(part)
            for each in part:
                yield int(each)


class KeptSampler(Kept, torch.utils.data.Sampler):
    pass


class KeptBatches(Kept):
    def __iter__(self):
        return (torch.full((1, 4), float(each)) for each in super().__iter__())


class KeptStream(KeptBatches, IterableDataset):
    pass


def shuffle_tensor(kept):
    kept[:] = kept[torch.randperm(len(kept))]


KEPT = {
    "a list": lambda: {"kept": [*range(100)]},
    "lists in a dict": lambda: {"kept": {0: [*range(50)], 1: [*range(50, 100)]}},
    "lists in a deque": lambda: {"kept": deque([[*range(50)], [*range(50, 100)]])},
    "many lists": lambda: {"kept": {k: [2 * k, 2 * k + 1] for k in range(80)}, "count": 160},
    "an array": lambda: {"kept": numpy.arange(100), "shuffle": numpy.random.shuffle},
    "a tensor": lambda: {"kept": torch.arange(100), "shuffle": shuffle_tensor},
    "an object's": lambda: {"kept": SimpleNamespace(order=[*range(100)])},
}


class Begins(TrainerCallback):
    def on_step_end(self, trainer):
        if trainer.step == 3:
            next(trainer.pass_over_training_data())


@pytest.mark.parametrize("what", KEPT)
def test_what_a_sampler_shuffles_in_place_is_the_passs_own(what):
    seen = [[], []]
    for found, callbacks in zip(seen, ([], [Begins()]), strict=True):
        sampler = KeptSampler(**KEPT[what]())
        data = torch.arange(float(len(sampler)))[:, None].expand(-1, 4)
        note_batches(DataLoader(data, batch_size=2, sampler=sampler), found, *callbacks)
    assert seen[0] == seen[1]
    assert len({*seen[1]}) == len(sampler)


@pytest.mark.parametrize("what", ["a list", "lists in a dict", "an array", "a tensor"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_what_a_stream_shuffles_in_place_is_the_passs_own(what, is_plain):
    seen = [[], []]
    for found, callbacks in zip(seen, ([], [Begins()]), strict=True):
        kept = KEPT[what]()
        loader = KeptBatches(**kept) if is_plain else DataLoader(KeptStream(**kept), None)
        note_batches(loader, found, *callbacks)
    assert seen[0] == seen[1]
    assert len({*seen[1]}) == 100


def note_batches(loader, seen, *callbacks):
    class Notes(TrainerCallback):
        def on_batch_start(self, trainer, batch):
            seen.extend(batch[:, 0].tolist())

    train(loader, Notes(), *callbacks, lr=1e-6, epochs=1)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class RowStream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_the_data_themselves_are_not_copied():
    for rows in ([1.0] * 8, numpy.ones(8), torch.ones(8)):
        made = copy_loader(DataLoader(Rows(rows), sampler=torch.utils.data.SequentialSampler(rows)))
        assert made.dataset.rows is rows
        assert made.sampler.data_source is rows
    rows = torch.empty(2**24 + 1)  # 64 MiB
    assert copy_loader(DataLoader(RowStream(rows), batch_size=2)).dataset.rows is rows
    assert copy_loader(DataLoader(RowStream([rows]), batch_size=2)).dataset.rows[0] is rows
    assert copy_loader(DataLoader(rows, batch_size=2, shuffle=True)).dataset is rows


def test_a_pass_that_lasts_over_several_updates_is_not_noticed():
    class Slow(TrainerCallback):
        def on_train_start(self, trainer):
            self.batches = trainer.pass_over_training_data()
            self.seen = []

        def on_step_end(self, trainer):
            self.seen += [batch for _, batch in zip(range(1), self.batches, strict=False)]

    slow = Slow()
    torch.manual_seed(1)
    data = torch.randn(8, 4)
    make = functools.partial(DataLoader, data, batch_size=2, shuffle=True)
    assert torch.equal(train(make()), train(make(), slow))
    assert sorted(torch.cat(slow.seen).tolist()) == sorted(data.tolist())


class Lines(IterableDataset):
    def __init__(self, file):
        self.file = file

    def __iter__(self):
        self.file.seek(0)
        return (torch.full((4,), float(line)) for line in self.file)


@pytest.mark.parametrize("kind", ["generator", "file", "closure"])
def test_what_cannot_be_gone_through_twice_at_once_is_refused_by_name(tmp_path, kind):
    (tmp_path / "numbers").write_text("1\n2\n3\n4\n")
    chance = random.Random(1)
    with (tmp_path / "numbers").open() as file:
        loader, text = {
            "generator": ((torch.randn(2, 4) for _ in range(4)), "its generator can be read once"),
            "file": (DataLoader(Lines(file), batch_size=2), "TextIOWrapper can be"),
            "closure": (
                DataLoader(range(8), collate_fn=lambda items: torch.full((2, 4), chance.random())),
                "function <lambda> holds a random generator",
            ),
        }[kind]
        with pytest.raises(UsageError, match=text):
            train(loader, Passes())


def test_a_loop_of_ones_own_passes_over_the_loader_that_it_has_named():
    def go(*, named):
        model = nn.Linear(4, 1)
        passes = Passes(["on_train_start"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run = Run(model, optimizer, config=TrainerConfig(epochs=1), callbacks=[passes])
        loader = [torch.randn(2, 4)] * 3
        if named:
            run.use_loader(loader)
        with run.start():
            for _ in run.epochs():
                for batch in run.batches(loader):
                    run.backward(square(run.module, batch))
                    run.step()
        return passes.sizes

    assert go(named=True) == [6]
    with pytest.raises(UsageError, match=r"not known yet.*run\.use_loader"):
        go(named=False)


def test_of_two_processes_each_passes_over_its_share(tiny, tmp_path):
    def work(rank):
        passes = Passes(["on_train_start", "on_step_end"])
        tiny.trainer(tmp_path / "run", callbacks=[passes], epochs=1).train()
        (tmp_path / str(rank)).write_text(str(passes.sizes))

    assert tiny.run_ranks(work) == [0, 0]
    assert (tmp_path / "0").read_text() == "[12, 12]"
    assert (tmp_path / "1").read_text() == "[10, 10]"  # whose last batch is the short one
