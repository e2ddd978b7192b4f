"""Host copies of a state, and the thread that writes them."""

import threading

import pytest
import torch

from trainer.writer import HostCopier


def test_tensors_whose_keys_look_alike_keep_buffers_of_their_own(tiny):
    state = {
        "callback_state": {
            "a.b": torch.tensor([1.0]),
            "a": {"b": torch.tensor([2.0])},
            1: torch.tensor([3.0]),
            "1": torch.tensor([4.0]),
        }
    }
    copier = HostCopier()
    for _ in range(3):  # from the second time on, the buffers are used again
        assert tiny.difference(state, copier.copy(state)) is None


def test_a_copy_is_the_state_of_its_time_and_keeps_tied_tensors_tied():
    weight = torch.zeros(3)
    copy = HostCopier().copy({"one": weight, "other": weight, "list": [weight[:2]]})
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
    copier = HostCopier()
    for _ in range(2):
        copy = copier.copy({"x": tensor})["x"]
        assert copy.shape == tensor.shape
        assert torch.equal(copy.to_dense(), tensor.to_dense())


def test_a_buffer_is_used_again():
    copier = HostCopier()
    first = copier.copy({"x": torch.zeros(3)})["x"]
    second = copier.copy({"x": torch.ones(3)})["x"]
    assert first.data_ptr() == second.data_ptr()
    third = copier.copy({"x": torch.ones(4)})["x"]
    assert third.tolist() == [1.0] * 4


def test_where_no_thread_can_be_started_the_training_thread_writes(tiny, tmp_path):
    def work():
        threading.stack_size(1 << 46)  # more memory than there are addresses
        torch.set_num_threads(2)
        tiny.trainer(tmp_path, epochs=1).train()

    assert tiny.child(work).wait() == 0
    assert tiny.newest_state(tmp_path)["progress"]["step"] == 6
