"""A loop that leaves a loader without a length inside a pass, of which a batch is fetched ahead."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from trainer import Run, TrainerConfig

LOST = "that batch is lost"


class Endless:
    def __init__(self):
        self.count = 0

    def __iter__(self):
        while True:
            self.count += 1
            yield torch.full((1, 1), float(self.count))


class Held:
    """Holds the iterator from which it takes."""

    def __init__(self):
        self.source = iter(Endless())

    def __iter__(self):
        return self.source


class EndlessData(Endless, IterableDataset):
    def __iter__(self):
        return (batch[0] for batch in super().__iter__())


class Anew:
    def __iter__(self):
        return (torch.full((1, 1), float(number)) for number in range(1, 7))


class AnewByEpoch(Anew):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch


def see(loader, *, leave=None, limit=None):
    """Returns the batches of three epochs, each left behind `leave` of them."""
    model, seen = nn.Linear(1, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    run = Run(model, optimizer, config=TrainerConfig(epochs=3), discover=False)
    with run.start():
        for _ in run.epochs():
            for number, batch in enumerate(run.batches(loader, limit=limit), 1):
                seen.append(int(batch))
                run.backward(run.module(batch).square().mean())
                run.step()
                if number == leave:
                    break
    return seen


@pytest.mark.parametrize("make", [Endless, Held, lambda: DataLoader(EndlessData())])
def test_break_out_of_a_loader_that_goes_on_is_told_once(caplog, make):
    assert see(make(), leave=3) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert caplog.text.count(LOST) == 1
    assert "limit=N" in caplog.text


@pytest.mark.parametrize("make", [Endless, Held, lambda: DataLoader(EndlessData())])
def test_behind_a_limit_no_batch_is_fetched(caplog, make):
    assert see(make(), limit=3) == [*range(1, 10)]
    assert LOST not in caplog.text


@pytest.mark.parametrize("make", [Anew, AnewByEpoch])
def test_break_out_of_a_loader_that_begins_anew_is_not_spoken_of(caplog, make):
    assert see(make(), leave=3) == [1, 2, 3] * 3
    assert LOST not in caplog.text
