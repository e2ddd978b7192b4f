"""What a loop keeps comes back as it was, or is refused before the first step."""

from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import Enum
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from trainer import ConfigError, Run, TrainerConfig

Pair = namedtuple("Pair", "one two")


class Color(Enum):
    RED = 1


class Thing:
    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def train(place, thing, *, resume=False, steps=2):
    model = nn.Linear(2, 1)
    config = TrainerConfig(output_dir=place, max_steps=steps)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), config=config, discover=False)
    run.keep("thing", thing)
    with run.start(resume):
        for _ in run.updates():
            run.backward(run.module(torch.ones(3, 2)).sum())
            run.step()


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        numpy.array(3),
        numpy.array([True, False]),
        numpy.random.RandomState(3).get_state(),
        numpy.random.default_rng(3).bit_generator.state,
        [numpy.float32(0.1), numpy.int64(7), numpy.bool_(True), numpy.float64(0.1)],
        Path("a") / "b",
        frozenset({1, "a", (2, 3)}),
        deque([1, numpy.ones(2)], maxlen=7),
        Counter([2, 5, 5]),
        {"a": [(1, None), {2: b"x"}, {3, 4}]},
        {"rows": [torch.ones(2), (torch.zeros(1), True)]},
    ],
)
def test_what_is_kept_comes_back_as_it_was(tiny, tmp_path, value):
    train(tmp_path, Thing({"value": value}))
    again = Thing()
    train(tmp_path, again, resume=True, steps=3)
    assert tiny.difference({"value": value}, again.state) is None
    if isinstance(value, numpy.ndarray):
        assert again.state["value"].dtype == value.dtype
        assert numpy.array_equal(again.state["value"], value)
    if isinstance(value, deque):
        assert again.state["value"].maxlen == 7


def test_a_state_of_torch_comes_back_as_a_dict(tmp_path):
    train(tmp_path, Thing(OrderedDict(a=1)))
    again = Thing()
    train(tmp_path, again, resume=True, steps=3)
    assert again.state == {"a": 1}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Pair(1, 2), r"keep\('thing'\)\.value is a Pair"),
        ([{"x": Color.RED}], r"keep\('thing'\)\.value\[0\]\.x is a Color"),
        (defaultdict(list), "is a defaultdict"),
        (torch.Size([2, 3]), "is a Size"),
        (numpy.array(["a"]), "is a ndarray|is an ndarray"),
        (numpy.ma.array([1]), "is a MaskedArray"),
        ({frozenset({1})}, "an element of keep"),
        ({Path("a"): 1}, r"the key PosixPath\('a'\) of keep"),
        (object(), "is an object"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_before_the_first_step(
    tmp_path, value, what
):
    with pytest.raises(ConfigError, match=f"(?:{what}).*make the rest of them in"):
        train(tmp_path, Thing({"value": value}))
    assert not [*tmp_path.rglob("state.pt")]
