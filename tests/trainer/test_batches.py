"""A batch keeps its kind: in training and validation, on the CPU and on a device."""

import collections
import dataclasses
import types

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from trainer import Trainer, TrainerConfig
from trainer.data.batches import move_to_device

META = torch.device("meta")  # a device that every machine has
Pair = collections.namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    names: list


@dataclasses.dataclass(slots=True)
class Slots:
    x: torch.Tensor
    inner: Pair
    size: int = dataclasses.field(init=False, default=3)


class Encoding(collections.UserDict):
    """As tokenizers hand it out: a mapping with attributes, which moves itself."""

    def __getattr__(self, name):
        if name == "data":
            raise AttributeError(name)
        return self.data[name]

    def to(self, device):
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class Output(collections.OrderedDict):
    """As models hand it out: its items are attributes, and `update` is forbidden."""

    def __init__(self, **items):
        super().__init__()
        for key, value in items.items():
            self[key] = value

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *_):
        raise RuntimeError


class Graph:
    """Moves itself in place, and returns nothing."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)


class Plain:
    def __init__(self, x, tokenizer):
        self.x, self.tokenizer = x, tokenizer


class Slotted:
    __slots__ = ("name", "x")

    def __init__(self, x):
        self.x, self.name = x, "a"


class Rows(list):
    def __init__(self, kind, rows):
        super().__init__(rows)
        self.kind = kind


X = torch.ones(2, 4)
OBJECT = object()
KINDS = {
    "a tensor": (X, lambda b: b),
    "a dict": ({"x": X, "id": ["a"]}, lambda b: b["x"]),
    "a default dict": (collections.defaultdict(list, x=X), lambda b: b["x"]),
    "a read-only mapping": (types.MappingProxyType({"x": X}), lambda b: b["x"]),
    "a mapping with attributes": (Encoding(x=X), lambda b: b.x),
    "an output of a model": (Output(x=X), lambda b: b.x),
    "a list": ([X, "a", None], lambda b: b[0]),
    "a list of a kind of its own": (Rows("kind", [X]), lambda b: b[0]),
    "a tuple": ((X, 1), lambda b: b[0]),
    "a named tuple": (Pair(X, [X]), lambda b: b.y[0]),
    "a dataclass that is frozen": (Frozen(X, ["a"]), lambda b: b.x),
    "a dataclass with slots": (Slots(X, Pair(X, X)), lambda b: b.inner.x),
    "an object that moves itself": (Graph(X), lambda b: b.x),
    "an object with attributes": (Plain(X, OBJECT), lambda b: b.x),
    "an object with slots": (Slotted(X), lambda b: b.x),
    "a namespace": (types.SimpleNamespace(x=X), lambda b: b.x),
    "packed sequences": (pack_sequence([X[0], X[1]]), lambda b: b.data),
    "nested": ({"in": [Encoding(x=X), (Pair(X, X),)]}, lambda b: b["in"][1][0].x),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_that_is_moved_keeps_its_kind_and_the_loaders_own_stays_where_it_was(name):
    batch, find = KINDS[name]
    moved = move_to_device(batch, META)
    assert type(moved) is type(batch)
    assert find(moved).device == META
    assert find(batch).device == torch.device("cpu")


def test_what_is_beside_the_tensors_is_kept():
    assert move_to_device(KINDS["an object with attributes"][0], META).tokenizer is OBJECT
    assert move_to_device(KINDS["a list of a kind of its own"][0], META).kind == "kind"
    assert move_to_device(KINDS["a default dict"][0], META)["new"] == []
    assert move_to_device(KINDS["an object with slots"][0], META).name == "a"
    assert move_to_device(KINDS["a dataclass with slots"][0], META).size == 3
    packed = move_to_device(KINDS["packed sequences"][0], META)
    assert isinstance(packed, PackedSequence)
    assert packed.batch_sizes.device == torch.device("cpu")


@pytest.mark.parametrize("other", ["text", b"bytes", 1, None, OBJECT, Plain, nn.Linear, Frozen])
def test_what_holds_no_tensor_is_left_alone(other):
    assert move_to_device(other, META) is other


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_function_gets_the_same_kind_in_training_and_in_validation(name):
    batch, find = KINDS[name]
    seen = []

    def loss_fn(model, batch):
        seen.append(type(batch))
        return model(find(batch).reshape(-1, 4)).square().mean()

    model = nn.Linear(4, 1)
    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        [batch],
        [batch],
        loss_fn=loss_fn,
        batch_size=lambda batch: 2,
        config=TrainerConfig(epochs=1, device="cpu"),
        discover=False,
    ).train()
    assert seen == [type(batch)] * 2
