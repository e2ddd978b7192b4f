"""A sampler that draws its order as it goes, in several processes whose items draw too."""

import json
import random
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer_callback import TrainerCallback


class Chunks(Sampler):
    """Shuffles chunk by chunk."""

    def __len__(self):
        return 32

    def __iter__(self):
        for start in range(0, 32, 8):
            yield from random.sample(range(start, start + 8), 8)


class Augmented(Dataset):
    """Tells which item it is, and what it has drawn: as often as the item wants."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        noise = random.random() if index % 3 == 0 else 0.0
        return torch.tensor([float(index), noise, 0.0, 0.0])


class Notes(TrainerCallback):
    """Writes down the items of each epoch, and their draws."""

    def __init__(self, file):
        self.file = file

    def on_batch_start(self, trainer, batch):
        with self.file.open("a") as file:
            for index, noise, *_ in batch.tolist():
                file.write(json.dumps([trainer.epoch, index, noise]) + "\n")


def make_loader(workers=0):
    return DataLoader(Augmented(), batch_size=2, sampler=Chunks(), num_workers=workers)


@pytest.mark.any_loop
@pytest.mark.parametrize("workers", [0, 2])
def test_each_item_is_seen_once_in_an_epoch_and_draws_of_its_own(tiny, tmp_path, workers):
    files = [tmp_path / str(rank) for rank in (0, 1)]

    def work(rank):
        options = {"callbacks": [Notes(files[rank])], "epochs": 2, "snapshot_interval": None}
        return tiny.trainer(None, loader=make_loader(workers), **options).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    for epoch in (0, 1):
        seen = [index for each in lines for when, index, _ in each if when == epoch]
        assert sorted(seen) == [float(index) for index in range(32)]
    first, second = ({noise for *_, noise in each if noise} for each in lines)
    assert first
    assert first.isdisjoint(second)


def test_a_run_that_was_killed_inside_an_epoch_goes_on_exactly(tiny, tmp_path):
    def work(place, kill=None):
        options = {"callbacks": [tiny.killer(kill)], "snapshot_interval": 1, "epochs": 2}
        trainer = tiny.trainer(place, loader=make_loader(), **options)
        return trainer.train(resume="auto").exit_code

    whole, place = tmp_path / "whole", tmp_path / "run"
    assert tiny.run_ranks(lambda rank: work(whole)) == [0, 0]
    codes = tiny.run_ranks(lambda rank: work(place, 22 if rank else None))
    assert codes == [1, -signal.SIGKILL]
    assert tiny.run_ranks(lambda rank: work(place)) == [0, 0]
    assert tiny.difference(tiny.newest_state(whole), tiny.newest_state(place)) is None
