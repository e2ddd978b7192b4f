"""How many items a batch has: known, or said to be a guess."""

import collections
import dataclasses
import types

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, default_collate

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.data.batch_size import BatchSizes
from trainer.data.loaders import EpochLoader

X = torch.arange(30.0).reshape(10, 3)
TRUE = [4, 4, 2]
Pair = collections.namedtuple("Pair", ["x", "name"])


@dataclasses.dataclass
class Both:
    x: torch.Tensor
    name: list


class Graph:
    def __init__(self, items):
        self.nodes = torch.cat([item[:1].repeat(index + 1, 1) for index, item in enumerate(items)])
        self.edges = torch.zeros(2, 17, dtype=torch.long)


def load(items, **options):
    return DataLoader(items, batch_size=4, **options)


def rows(make):
    return [make(i) for i in range(10)]


def drop_odd(items):
    return default_collate([item for item in items if item[0] < 15] or items)


def to_arrays(items):
    ids = [item["id"] for item in items]
    return {"id": ids, "x": numpy.array([item["x"] for item in items])}


KNOWN = {
    "a tensor": load(X),
    "a tuple": load(rows(lambda i: (X[i], i))),
    "a string first": load(rows(lambda i: {"id": str(i), "x": X[i]})),
    "a string first, in a tuple": load(rows(lambda i: (str(i), X[i]))),
    "strings only": load(rows(str)),
    "numbers only": load(rows(float)),
    "a named tuple": load(rows(lambda i: Pair(X[i], str(i)))),
    "nested": load(rows(lambda i: {"id": str(i), "in": {"a": (str(i), [X[i], i])}})),
    "a list of strings in an item": load(rows(lambda i: {"words": ["a", "b", "c"], "x": X[i]})),
    "a tuple of dicts": load(rows(lambda i: ({"x": X[i]}, {"y": X[i]}))),
    "arrays": load(rows(lambda i: {"id": str(i), "x": i}), collate_fn=to_arrays),
    "a list of dicts": load(rows(lambda i: {"x": X[i], "y": i}), collate_fn=list),
    "images and targets": load(
        rows(lambda i: (X[i], {"boxes": torch.ones(i, 4)})),
        collate_fn=lambda items: tuple(zip(*items, strict=True)),
    ),
    "padded, with lengths": load(
        rows(lambda i: X[0].repeat(i + 1)),
        collate_fn=lambda items: (
            pad_sequence(items, batch_first=True),
            torch.tensor([len(item) for item in items]),
        ),
    ),
    "time first, with labels": load(
        rows(lambda i: (X[0].repeat(7), i)),
        collate_fn=lambda items: (
            torch.stack([item for item, _ in items], dim=1),
            torch.tensor([label for _, label in items]),
        ),
    ),
    "packed sequences": load(
        rows(lambda i: X[0].repeat(i + 1)),
        collate_fn=lambda items: pack_sequence(items, enforce_sorted=False),
    ),
    "a dataclass": load(
        rows(lambda i: (X[i], str(i))),
        collate_fn=lambda items: Both(torch.stack([x for x, _ in items]), [n for _, n in items]),
    ),
    "an object": load(rows(str), collate_fn=lambda items: types.SimpleNamespace(names=items)),
    "edges, counted by the loader": load(
        rows(lambda i: X[i]),
        collate_fn=lambda items: {"nodes": torch.cat(items), "edges": torch.ones(len(items), 2)},
    ),
    "a batch sampler": DataLoader(X, batch_sampler=[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
    "whole batches of a data set": DataLoader([X[:4], X[4:8], X[8:]], batch_size=None),
    "a list of batches": [{"id": "abcd", "x": X[:4]}, (X[:4], ["a"] * 4), [X[:2], numpy.ones(2)]],
    "a list of texts": [["a"] * 4, ["b"] * 4, ["c"] * 2],
}


def sizes_of(loader, function=None):
    wrapped = EpochLoader(loader, 0, "validation", in_step=False)
    sizes = BatchSizes(function)
    batches = (batch for batch, _ in wrapped.iterate(0))
    return [sizes.count(batch, wrapped.promised_size(index)) for index, batch in enumerate(batches)]


@pytest.mark.parametrize("form", KNOWN)
def test_the_items_of_an_ordinary_batch_are_counted(form, caplog):
    assert sizes_of(KNOWN[form]) == TRUE
    assert caplog.text == ""


GUESSED = {
    "time first": (
        load(
            rows(lambda i: X[0].repeat(7)),
            collate_fn=lambda items: torch.stack(items).transpose(0, 1),
        ),
        TRUE,
    ),
    "images only": (load(rows(lambda i: X[i]), collate_fn=list), TRUE),
    "a graph": (load(X, collate_fn=Graph), TRUE),
    "tokens packed into one row": (
        load(rows(lambda i: X[i]), collate_fn=lambda items: torch.cat(items)[None]),
        [1, 1, 1],
    ),
    "items dropped in collate": (load(X, collate_fn=drop_odd), [4, 1, 2]),
    "several crops of an item": (load(X, collate_fn=lambda i: torch.stack(i + i)), [8, 8, 4]),
    "a graph of no loader": ([{"nodes": torch.ones(9, 3), "edges": torch.ones(2, 17)}], [9]),
    "dicts of no loader": ([[{"x": X[0]}, {"x": X[1]}]], [2]),
    "ragged tensors of no loader": ([[torch.ones(3), torch.ones(5)]], [3]),
    "an object of no loader": ([types.SimpleNamespace(names="a")], [1]),
    "a 0-dim tensor of no loader": ([torch.tensor(1.0)], [1]),
}


@pytest.mark.parametrize("form", GUESSED)
def test_a_guess_that_forms_of_the_batch_contradict_is_said_once(form, caplog):
    loader, expected = GUESSED[form]
    assert sizes_of(loader) == expected
    assert caplog.text.count("is not certain") == 1
    assert f"{expected[0]} was taken" in caplog.text or f"{expected[1]} was taken" in caplog.text
    assert "batch_size=lambda batch: ..." in caplog.text


def test_a_guess_says_what_contradicts_what(caplog):
    sizes_of(load(X, collate_fn=Graph))
    assert "its parts say 10, 2, the loader's batch size 4. 4 was taken" in caplog.text


@pytest.mark.parametrize("form", GUESSED)
def test_the_users_own_count_rules(form, caplog):
    loader, _ = GUESSED[form]
    assert {*sizes_of(loader, lambda batch: numpy.int64(3))} == {3}
    assert caplog.text == ""


def validate(loader, losses, **options):
    """The validation loss over batches whose losses are given."""
    left = [*losses]

    def loss_fn(model, batch):
        return model(torch.ones(1, 4)).mean() * 0 + (0 if model.training else left.pop(0))

    model = nn.Linear(4, 1)
    return (
        Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            [torch.ones(1, 4)],
            loader,
            loss_fn=loss_fn,
            config=TrainerConfig(epochs=1),
            discover=False,
            **options,
        )
        .train()
        .val_loss
    )


def test_a_string_before_the_tensor_does_not_bend_the_validation_loss():
    assert validate(KNOWN["a string first"], [0.0, 0.0, 10.0]) == 2.0


def test_the_validation_loss_is_weighted_by_the_users_count():
    loader = [torch.ones(1, 5), torch.ones(1, 15)]
    assert validate(loader, [0.0, 4.0], batch_size=lambda batch: batch.shape[1]) == 3.0


def test_a_batch_of_no_items_does_not_count():
    loader = [torch.ones(0, 4), torch.ones(2, 4)]
    assert validate(loader, [float("nan"), 4.0]) == 4.0


def test_no_items_in_any_batch_are_no_mean():
    with pytest.raises(RuntimeError, match="the 2 batches of the validation have no items"):
        validate([torch.ones(2, 4)] * 2, [1.0, 1.0], batch_size=lambda batch: 0)


@pytest.mark.parametrize("answer", [2.5, -1, None, True, "4", torch.tensor([1, 2])])
def test_a_count_that_is_no_number_of_items_is_refused(answer):
    with pytest.raises(ConfigError, match=r"batch_size answered .* Answer the number of its items"):
        validate([torch.ones(2, 4)], [1.0], batch_size=lambda batch: answer)


def test_a_batch_size_that_is_no_function_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size takes a function, and got 32"):
        validate([torch.ones(2, 4)], [1.0], batch_size=32)


@pytest.mark.parametrize("kind", ["map", "list"])
def test_two_processes_weigh_their_shares_as_one_does(tiny, tmp_path, kind):
    def loader():
        items = rows(lambda i: {"id": str(i), "x": X[i]})
        return load(items) if kind == "map" else [*load(items)]

    def loss_fn(model, batch):
        zero = model(torch.ones(1, 4)).mean() * 0
        return zero if model.training else zero + batch["x"].square().sum()

    def work(rank):
        model = nn.Linear(4, 1)
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            [torch.ones(1, 4)] * 2,
            loader(),
            loss_fn=loss_fn,
            config=TrainerConfig(epochs=1),
            discover=False,
        )
        (tmp_path / str(rank)).write_text(repr(trainer.train().val_loss))

    assert tiny.run_ranks(work) == [0, 0]
    parts = [X[:4], X[4:8], X[8:]]
    expected = sum(len(part) * float(part.square().sum()) for part in parts) / 10
    for rank in "01":
        assert float((tmp_path / rank).read_text()) == pytest.approx(expected, rel=1e-12)


def count_all(batches, caplog):
    caplog.set_level("INFO")
    sizes = BatchSizes(None)
    found = [sizes.count(batch, None) for batch in batches]
    return found, [line for line in caplog.messages if "the first dimension was taken" in line]


def test_that_the_first_dimension_is_a_guess_is_said_once_where_batches_differ(caplog):
    batches = [torch.ones(35, 20), torch.ones(35, 20), torch.ones(12, 20), torch.ones(9, 20)]
    found, told = count_all(batches, caplog)
    assert found == [35, 35, 12, 9]
    assert len(told) == 1
    assert "taken, 35 and 12, by which val_loss weighs the batches." in told[0]


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(35, 20), torch.ones(35, 20)],
        [torch.ones(4), torch.ones(2)],
        [(torch.ones(4, 9), torch.ones(4)), (torch.ones(2, 9), torch.ones(2))],
        [{"x": torch.ones(4, 9), "y": numpy.ones(4)}, {"x": torch.ones(2, 9), "y": numpy.ones(2)}],
    ],
)
def test_nothing_is_said_where_weights_do_not_matter_or_labels_confirm_them(batches, caplog):
    assert count_all(batches, caplog)[1] == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: nested tensors are a prototype
def test_a_nested_tensor_has_as_many_items_as_parts(caplog):
    batch = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])
    assert count_all([batch], caplog) == ([2], [])
