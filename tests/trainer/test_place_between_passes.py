"""Where a loader stands between two passes, and that a resumed run begins there."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from trainer import Run, Trainer, TrainerConfig


class Stream:
    """Goes on where the last pass was left; one is over behind each `size` batches."""

    size = 4

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while True:
            self.place += 1
            yield torch.full((2, 1), float(self.place))
            if self.place % self.size == 0:
                return

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class SizedStream(Stream):
    def __len__(self):
        return 4


class Endless(Stream):
    size = 1000


class SizedEndless(SizedStream):
    size = 1000


class Pass(Stream):
    """Begins each pass anew; its state is a place inside one, at whose end is nothing more."""

    skip = 0

    def __iter__(self):
        first, self.skip = self.skip, 0
        for self.place in range(first + 1, 5):
            yield torch.full((2, 1), float(self.place))

    def load_state_dict(self, state):
        self.skip = state["place"]


class StreamData(Stream, IterableDataset):
    def __iter__(self):
        return (item[0] for item in super().__iter__())


def torchdata_nodes():
    from torchdata.nodes import IterableWrapper, Loader

    return Loader(IterableWrapper([torch.full((2, 1), float(i)) for i in range(1, 5)]))


def torchdata_loader():
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader([torch.full((1,), float(i)) for i in range(1, 9)], batch_size=2)


KINDS = {
    "goes on": Stream,
    "goes on, and has a length": SizedStream,
    "begins anew": Pass,
    "nodes of torchdata": torchdata_nodes,
    "the loader of torchdata": torchdata_loader,
}
CUT = {
    "goes on": Endless,
    "goes on, and has a length": SizedEndless,
    "nodes of torchdata": torchdata_nodes,
    "the loader of torchdata": torchdata_loader,
}


def train(place, make, epochs, seen, *, resume=False, **config):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def loss(model, batch):
        seen.append(int(batch[0, 0]))
        return model(batch).square().mean()

    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        make(),
        loss_fn=loss,
        config=TrainerConfig(epochs=epochs, output_dir=place, **config),
        discover=False,
    ).train(resume)


def resume_each_epoch(place, make, **config):
    whole, parts = [], []
    train(place / "whole", make, 3, whole, **config)
    for epochs in (1, 2, 3):
        train(place / "parts", make, epochs, parts, resume=epochs > 1, **config)
    return whole, parts


@pytest.mark.filterwarnings("ignore:.*set_vital")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_behind_an_epoch_sees_what_an_uninterrupted_one_does(tmp_path, kind):
    whole, parts = resume_each_epoch(tmp_path, KINDS[kind])
    assert parts == whole
    assert len(whole) == 12


@pytest.mark.filterwarnings("ignore:.*set_vital")
@pytest.mark.parametrize("kind", CUT)
def test_a_run_resumed_behind_an_epoch_cut_by_its_limit_sees_the_same(tmp_path, kind):
    whole, parts = resume_each_epoch(tmp_path, CUT[kind], max_train_batches=3)
    assert parts == whole
    assert len(whole) == 9


@pytest.mark.parametrize("make", [Stream, SizedStream])
def test_a_stop_inside_a_later_epoch_goes_on_there(tmp_path, make):
    whole, parts = [], []
    train(tmp_path / "whole", make, 3, whole)
    for steps in (4, 6, 8, 9, None):
        train(tmp_path / "parts", make, 3, parts, resume=steps != 4, max_steps=steps)
    assert parts == whole == [*range(1, 13)]


def run_by_hand(place, epochs, seen, leave=None, *, resume=False, keeps=False):
    """Leaves the epochs before the first batch of epoch `leave` has its backward pass."""
    model, stream = nn.Linear(1, 1), Stream()
    config = TrainerConfig(epochs=epochs, output_dir=place)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=1e-3), config=config, discover=False)
    other = Stream()
    if keeps:
        run.keep("stream", stream)
        run.keep("other", other)
    with run.start(resume):
        for epoch in run.epochs():
            for batch in run.batches(other if keeps and epoch % 2 else stream):
                if epoch == leave:
                    return
                seen.append(int(batch[0, 0]))
                run.backward(run.module(batch).square().mean())
                run.step()


def test_a_loop_left_at_the_first_batch_of_an_epoch_has_it_again(tmp_path):
    seen = []
    run_by_hand(tmp_path, 2, seen, leave=1)
    run_by_hand(tmp_path, 2, seen, resume=True)
    assert seen == [*range(1, 9)]


def test_a_loop_that_keeps_its_loaders_itself_may_change_between_them(tmp_path):
    seen = []
    for epochs in (1, 2, 3, 4):
        run_by_hand(tmp_path, epochs, seen, resume=epochs > 1, keeps=True)
    assert seen == [*range(1, 5), *range(1, 5), *range(5, 9), *range(5, 9)]


def test_two_processes_begin_where_they_stood(tiny, tmp_path):
    class Wide(Endless):
        def __iter__(self):
            return (batch.repeat(1, 4) for batch in super().__iter__())

    def work(place, epochs, resume=False):
        options = {"loader": Wide(), "epochs": epochs, "max_train_batches": 3}
        return tiny.trainer(place, **options).train(resume).exit_code

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.run_ranks(lambda rank: work(whole, 2)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(parts, 1)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(parts, 2, resume=True)) == [0, 0]
    assert tiny.newest_state(whole)["other_ranks"][0]["loader"]["loader"] == {"place": 12}
    assert tiny.difference(tiny.newest_state(whole), tiny.newest_state(parts)) is None


def test_a_data_set_whose_place_between_passes_no_snapshot_keeps_is_told(tmp_path, caplog):
    train(tmp_path, lambda: DataLoader(StreamData(), batch_size=2), 3, [])
    assert caplog.text.count("no snapshot keeps 'place' of the data set StreamData") == 1
