"""Callback state becomes plain data, or is refused with the path to the value."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer_callback import StateError
from trainer_callback.state import to_plain, to_plain_state


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


Point = namedtuple("Point", "x y")


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (b"x", b"x"),
        (Text("x"), "x"),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (deque([1, 2], maxlen=5), [1, 2]),
        (frozenset({1}), {1}),
        (Path("a/b"), str(Path("a/b"))),
        (Point(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({1: {("a", 2): {3, 4}}}, {1: {("a", 2): {3, 4}}}),
    ],
)
def test_a_value_becomes_plain_and_can_be_loaded_without_this_project(
    value: Any, plain: Any
) -> None:
    found = to_plain(value)
    assert found == plain
    assert type(found) is type(plain)
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


@pytest.mark.parametrize(
    "value",
    [np.arange(3.0), np.arange(4)[::-1], np.float32(1.0) * np.ones((2, 2), "f4"), np.array(5)],
)
def test_an_array_becomes_a_tensor(value: np.ndarray) -> None:
    found = to_plain({"a": value})["a"]
    assert torch.equal(found, torch.tensor(value.copy()))
    assert found.shape == value.shape


def test_a_tensor_is_a_detached_copy() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    found = to_plain([parameter])[0]
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(found, torch.ones(2))
    assert not found.requires_grad
    assert type(found) is torch.Tensor


def test_the_copy_is_deep() -> None:
    state = {"a": [1]}
    found = to_plain(state)
    state["a"].append(2)
    assert found == {"a": [1]}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "Best.a.b[1]"),
        (datetime(2020, 1, 1), "Best.a.b[1]"),
        (Colour.RED, "Best.a.b[1]"),
        (Level.LOW, "Best.a.b[1]"),
        (1j, "Best.a.b[1]"),
        (np.datetime64("2020-01-01"), "Best.a.b[1]"),
        (np.complex128(1j), "Best.a.b[1]"),
        (np.array([object()]), "Best.a.b[1]"),
        (np.array(["x"]), "Best.a.b[1]"),
        ({frozenset({1})}, "Best.a.b[1]"),
        ({(1, frozenset({2})): 3}, "Best.a.b[1]"),
        ({Colour.RED: 1}, "Best.a.b[1]"),
        ({torch.ones(1): 1}, "Best.a.b[1]"),
        (lambda: None, "Best.a.b[1]"),
        (bytearray(b"x"), "Best.a.b[1]"),
    ],
)
def test_anything_else_is_refused_with_the_path_to_it(value: Any, path: str) -> None:
    with pytest.raises(StateError) as caught:
        to_plain_state({"a": {"b": [0, value]}}, "Best")
    assert path in str(caught.value)


def test_a_container_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(StateError, match=r"state\[0\] contains itself"):
        to_plain(loop)


@pytest.mark.parametrize(
    "value", [{torch.zeros(2)}, frozenset({(1, torch.zeros(2))}), {(1, torch.zeros(2)): 3}]
)
def test_a_tensor_in_a_set_or_a_key_is_refused_for_no_copy_would_be_made(value: Any) -> None:
    with pytest.raises(StateError, match=r"state\[0\].*Use "):
        to_plain([value], copy_tensors=False)


def test_one_value_in_two_places_is_no_loop() -> None:
    shared = [1]
    assert to_plain([shared, shared]) == [[1], [1]]


@pytest.mark.parametrize("answer", [[1], "no", 5, {1}])
def test_a_state_that_is_no_mapping_is_refused(answer: Any) -> None:
    with pytest.raises(StateError, match=r"Best answered .* dict or None"):
        to_plain_state(answer, "Best")
