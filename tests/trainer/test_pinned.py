"""Slabs of host memory that a card copies a snapshot into; on a CPU they are ordinary memory."""

import gc
import math
import threading
import weakref

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.snapshots.pinned import Slabs, plan_slabs
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer.snapshots.writer import CpuCopier


def sizes_of_gpt2(copies):
    c = 768
    block = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,)] * 12
    block += [(c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)] * 12
    shapes = [(50_257, c), (1024, c), *block, (c,), (c,)]
    return [4 * math.prod(shape) for shape in shapes] * copies + [4] * 148


@pytest.fixture
def as_from_a_card(monkeypatch):
    monkeypatch.setattr("trainer.snapshots.writer._FROM_CARDS", {"cpu"})


@pytest.fixture
def taken(monkeypatch):
    """The bytes of each slab that is taken."""
    found, allocate = [], Slabs._allocate
    monkeypatch.setattr(
        Slabs, "_allocate", lambda own, size: found.append(size) or allocate(own, size)
    )
    return found


@pytest.fixture
def slabs(monkeypatch):
    """Weak references to the memory of each slab that is taken."""
    found, allocate = [], Slabs._allocate

    def remember(own, size):
        slab = allocate(own, size)
        found.append(weakref.ref(slab.untyped_storage()))  # a tensor of it may be another one
        return slab

    monkeypatch.setattr(Slabs, "_allocate", remember)
    return found


@pytest.mark.parametrize("copies", [1, 3, 4])
def test_the_slabs_of_a_gpt2_are_few_powers_of_two_with_little_waste(copies):
    sizes = sizes_of_gpt2(copies)
    plan = plan_slabs(sizes)
    assert all(size & (size - 1) == 0 for size, _ in plan)
    assert len(plan) <= 6
    assert sum(size for size, _ in plan) <= 1.05 * sum(sizes)


@pytest.mark.parametrize("sizes", [[], [1], [2**30 + 1], [600] * 3, [5000, 3000], [2**20] * 33])
def test_everything_has_a_place_and_no_slab_overflows(sizes):
    plan = plan_slabs(sizes)
    placed = sorted(each for _, inside in plan for each in inside)
    assert placed == sorted(-(-each // 512) * 512 for each in sizes)
    assert all(sum(inside) <= size for size, inside in plan)
    assert sum(size for size, _ in plan) <= 2 * sum(placed)


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0).view(3, 4)[:, :2],
        torch.arange(3.0).expand(2, 3),
        torch.tensor([True, False]),
        torch.randn(7).bfloat16(),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor(2.0),
        torch.empty(0, 3),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
)
def test_a_tensor_in_a_slab_is_like_any_other(source):
    slabs = Slabs(pin=False)
    slabs.reserve([source.nbytes, 4000])
    buffer = slabs.take(source)
    like = torch.empty_like(source)
    assert (buffer.shape, buffer.stride(), buffer.dtype) == (
        source.shape,
        like.stride(),
        source.dtype,
    )
    assert buffer.untyped_storage().nbytes() == source.numel() * source.element_size()
    assert torch.equal(buffer.copy_(source), source)


def test_tensors_of_a_slab_do_not_overlap():
    slabs, sources = Slabs(pin=False), [torch.full((n,), float(n)) for n in range(1, 300)]
    slabs.reserve([each.nbytes for each in sources])
    buffers = [slabs.take(each).copy_(each) for each in sources]
    assert all(map(torch.equal, buffers, sources))


def test_what_is_there_already_is_not_taken_again(taken):
    slabs = Slabs(pin=False)
    slabs.reserve_beside([1000, 1000], torch.device("cpu"))
    slabs.reserve([1000, 1000])
    assert taken == [2048]
    slabs.reserve([1000, 1000, 5000])
    assert taken == [2048, 8192]


def test_where_nothing_can_be_pinned_it_is_said_once(caplog):
    slabs = Slabs(pin=True)  # which fails on a machine without a card
    if torch.cuda.is_available():
        pytest.skip("memory can be pinned here")
    slabs.reserve([1000])
    assert torch.equal(slabs.take(torch.ones(250)).fill_(1), torch.ones(250))
    slabs.take(torch.ones(9))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "can be pinned for snapshots: pin_memory=True requires" in said[0]
    assert "\n" not in said[0]


def test_a_copy_that_failed_gives_its_memory_back(as_from_a_card, slabs):
    copier = CpuCopier()
    with pytest.raises(RuntimeError):  # a meta tensor has nothing to be copied
        copier.copy({"x": torch.zeros(300), "y": torch.zeros(3, device="meta")})
    copier.release()
    gc.collect()
    assert slabs
    assert not [each for each in slabs if each() is not None]


def test_a_card_that_does_not_answer_hides_nothing_at_the_end(monkeypatch):
    def fail():
        asked.append(1)
        raise RuntimeError("CUDA error: unspecified launch failure")

    asked = []
    monkeypatch.setattr("torch.accelerator.synchronize", fail)
    slabs = Slabs(pin=True)
    slabs.release()
    assert not asked  # nothing was pinned: a run on the CPU leaves the card alone
    slabs._has_pinned = True
    slabs.release()
    assert asked


def make(place, *, freeze=False, **config):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(90, 310), nn.Tanh(), nn.Linear(310, 1))
    model[0].requires_grad_(not freeze)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"output_dir": place, "snapshot_interval": 2, "keep_snapshots": 9, **config}
    return Trainer(
        model,
        optimizer,
        [*torch.randn(6, 4, 90)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(epochs=2, device="cpu", **settings),
        discover=False,
        progress=False,
    )


def test_a_run_takes_its_memory_beside_the_second_update(
    as_from_a_card, tmp_path, tiny, monkeypatch
):
    calls, take_in = [], Slabs._take_in

    def note(own, sizes):
        calls.append((threading.current_thread().name, sum(sizes)))
        take_in(own, sizes)

    monkeypatch.setattr(Slabs, "_take_in", note)
    make(tmp_path / "slabs").train()
    weights = 4 * (90 * 310 + 310 + 310 + 1)
    assert calls[0] == ("snapshot-memory", 3 * weights + 4 * 4)  # with moments and counts
    assert calls[1][0] == "MainThread"  # what else is in the first snapshot
    assert all(size < 20_000 for _, size in calls[2:])  # random numbers of a CPU
    monkeypatch.undo()
    make(tmp_path / "plain").train()
    for ours, theirs in zip(
        *(list_snapshots(tmp_path / name / "snapshots") for name in ("slabs", "plain")),
        strict=True,
    ):
        assert tiny.difference(load_state(ours)[0], load_state(theirs)[0]) is None
        assert (ours / "state.pt").stat().st_size == (theirs / "state.pt").stat().st_size


def test_a_run_gives_the_memory_of_its_copies_back(as_from_a_card, tmp_path, slabs):
    trainer = make(tmp_path)
    trainer.train()
    gc.collect()
    assert slabs
    assert not [each for each in slabs if each() is not None]
    assert trainer.run.result is not None


@pytest.fixture
def taken_ahead(monkeypatch):
    """The bytes that are taken beside training."""
    found, reserve = [], Slabs.reserve_beside

    def note(own, sizes, device):
        found.append(sum(sizes))
        reserve(own, sizes, device)

    monkeypatch.setattr(Slabs, "reserve_beside", note)
    return found


def test_nothing_is_taken_without_a_place_for_snapshots(as_from_a_card, taken):
    make(None, snapshot_interval=None).train()
    assert taken == []


def test_nothing_is_taken_ahead_for_the_snapshot_at_the_end(as_from_a_card, taken_ahead, tmp_path):
    make(tmp_path, snapshot_interval=None).train()
    assert taken_ahead == []
    assert list_snapshots(tmp_path / "snapshots")


def test_nothing_is_taken_for_frozen_weights_that_no_snapshot_has(
    as_from_a_card, taken_ahead, tmp_path
):
    make(tmp_path, snapshot_frozen=False, freeze=True).train()
    assert taken_ahead == [3 * 4 * 311 + 2 * 4]


@pytest.mark.card
def test_on_a_card_the_copies_are_pinned_and_the_memory_is_given_back():
    model = nn.Sequential(nn.Linear(900, 3100), nn.Linear(3100, 1)).cuda()
    state = {"model": model.state_dict()}
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    copier = CpuCopier()
    copier.prepare(model.parameters())
    copy = copier.copy(state)["model"]
    assert all(each.is_pinned() for each in copy.values())
    assert all(torch.equal(copy[name], each.cpu()) for name, each in state["model"].items())
    del copy
    copier.release()
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) <= before
