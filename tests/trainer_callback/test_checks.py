"""What is a count, what a positive number, and how an option's value is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainer_callback import OptionError
from trainer_callback.checks import is_count, is_positive, option_error
from trainer_callback.tensors import is_sharded, local_part, shard_group, whole_tensor
from trainer_callback.wording import flags_spoken


@pytest.mark.parametrize(
    ("value", "least", "expected"),
    [(1, 1, True), (0, 1, False), (0, 0, True), (True, 0, False), (1.0, 0, False), ("1", 0, False)],
)
def test_a_count_is_an_int_of_at_least_so_many(value: object, least: int, expected: bool) -> None:
    assert is_count(value, least) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1e-9, True), (3, True), (0, False), (-1.0, False), (True, False), (None, False)]
    + [(value, False) for value in (math.nan, math.inf, -math.inf, "1")],
)
def test_a_positive_number_is_finite_and_above_0(value: Any, expected: bool) -> None:
    assert is_positive(value) is expected


def test_a_refused_option_comes_with_a_value_that_would_do() -> None:
    def refuse(**more: Any) -> str:
        error = option_error("WarmthCallback", "warmth_", "limit", "at least 1", 0, use=1, **more)
        assert isinstance(error, OptionError)
        return str(error)

    assert refuse() == "WarmthCallback: limit must be at least 1, got 0. Use limit=1."
    assert refuse(effect="for each").endswith("Use limit=1 for each.")
    with flags_spoken():
        assert refuse().endswith("Use --warmth_limit 1.")


def test_a_tensor_of_one_process_is_its_own_part_and_the_whole() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert not is_sharded(tensor)
    assert local_part(tensor) is tensor
    assert whole_tensor(tensor) is tensor
    assert shard_group(tensor) is None
