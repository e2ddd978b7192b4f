"""Host copies of a state, and the thread that writes them."""

import threading

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer.snapshots.store import SnapshotStore
from trainer.snapshots.writer import BackgroundWriter, CpuCopier
from trainer_callback import SnapshotError, TrainerCallback

FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {}}


def test_tensors_whose_keys_look_alike_keep_buffers_of_their_own(tiny):
    state = {
        "callback_state": {
            "a.b": torch.tensor([1.0]),
            "a": {"b": torch.tensor([2.0])},
            1: torch.tensor([3.0]),
            "1": torch.tensor([4.0]),
        }
    }
    copier = CpuCopier()
    for _ in range(3):  # from the second time on, the buffers are used again
        assert tiny.difference(state, copier.copy(state)) is None


def test_a_copy_is_the_state_of_its_time_and_keeps_tied_tensors_tied():
    weight = torch.zeros(3)
    copy = CpuCopier().copy({"one": weight, "other": weight, "list": [weight[:2]]})
    weight.fill_(1.0)
    assert copy["one"].tolist() == [0.0, 0.0, 0.0]
    assert copy["one"] is copy["other"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0).view(3, 4)[:, :2],
        torch.arange(3.0).expand(2, 3),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.eye(3).to_sparse(),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.tensor(2.0),
    ],
)
def test_tensors_of_any_form_are_copied(tensor):
    copier = CpuCopier()
    for _ in range(2):
        copy = copier.copy({"x": tensor})["x"]
        assert copy.shape == tensor.shape
        assert torch.equal(copy.to_dense(), tensor.to_dense())


@pytest.mark.parametrize("cards", [set(), {"cpu"}])
def test_a_view_that_conjugates_or_negates_is_not_taken_for_what_it_views(cards, monkeypatch, tiny):
    monkeypatch.setattr("trainer.snapshots.writer._FROM_CARDS", cards)
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    mirrored = numbers.conj()
    state = {"a": numbers, "b": mirrored, "c": numbers.imag, "d": mirrored.imag}
    assert tiny.difference(state, CpuCopier().copy(state)) is None


def test_a_buffer_is_used_again():
    copier = CpuCopier()
    first = copier.copy({"x": torch.zeros(3)})["x"]
    second = copier.copy({"x": torch.ones(3)})["x"]
    assert first.data_ptr() == second.data_ptr()
    third = copier.copy({"x": torch.ones(4)})["x"]
    assert third.tolist() == [1.0] * 4


@pytest.mark.parametrize("sync", [True, False])
def test_whatever_goes_wrong_in_a_write_is_reported_once(sync):
    def write():
        raise KeyError("odd")

    writer = BackgroundWriter(sync=sync)
    writer.start(write, lambda: None)
    with pytest.raises(SnapshotError, match=r"could not be written: KeyError.'odd'"):
        writer.collect(wait=True)
    writer.collect(wait=True)


def test_no_state_depends_on_how_fast_the_disk_is(tiny, tmp_path):
    class Slow(TrainerCallback):
        """Counts the snapshots that it has heard of; megabytes keep the disk busy."""

        heard = 0

        def on_snapshot_saved(self, trainer):
            self.heard += 1

        def on_snapshot_save(self, trainer):
            return {"heard": self.heard, "bulk": torch.zeros(5_000_000)}

    options = {"epochs": 1, "snapshot_interval": 1, "keep_snapshots": 9, "val": False}
    tiny.trainer(tmp_path, callbacks=[Slow()], **options).train()
    states = [load_state(path)[0] for path in list_snapshots(tmp_path / "snapshots")]
    heard = [state["callback_state"]["Slow"]["heard"] for state in states]
    assert heard == [5, 4, 3, 2, 1, 0]


def test_one_write_is_in_flight_and_a_second_waits(tmp_path):
    go_on, started = threading.Event(), threading.Event()

    def slow(file):
        started.set()
        go_on.wait(30)

    store = SnapshotStore(TrainerConfig(output_dir=tmp_path))
    weight = torch.zeros(3)
    store.save(1, {"x": weight}, FACTS, lambda path: None, {"slow": slow})
    assert started.wait(30)
    weight.fill_(1.0)  # training goes on
    second = threading.Thread(
        target=store.save, args=(2, {"x": weight}, FACTS, lambda path: None, {})
    )
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    second.join()
    store.collect(wait=True)
    for step in (1, 2):
        state, _ = load_state(tmp_path / "snapshots" / f"step-{step:08d}")
        assert state["x"].tolist() == [step - 1.0] * 3


def test_where_no_thread_can_be_started_the_training_thread_writes(tiny, tmp_path):
    def work():
        threading.stack_size(1 << 46)  # more memory than there are addresses
        torch.set_num_threads(2)
        tiny.trainer(tmp_path, epochs=1).train()

    assert tiny.child(work).wait() == 0
    assert tiny.newest_state(tmp_path)["progress"]["step"] == 6
