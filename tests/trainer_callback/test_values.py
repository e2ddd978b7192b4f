"""What a constructor was given is of the types that it says, or is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest

from trainer_callback import OptionError, UsageError
from trainer_callback.values import check_types


class Made:
    def __init__(
        self,
        on: bool = True,
        count: int = 3,
        share: float = 0.5,
        name: str = "x",
        kind: Literal["a", "b"] = "a",
        most: float | None = None,
        names: Sequence[str] = (),
        place: Path = Path(),
        other=None,
    ) -> None:
        check_types(Made, locals(), "made_")


class Derived(Made):
    def __init__(self, more: int, on: bool) -> None:
        super().__init__(on=on)


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    with pytest.raises(OptionError, match="Made: on must be"):
        Derived("anything", "no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"on": False},
        {"count": numpy.int64(4)},
        {"share": 1},
        {"share": numpy.float32(0.5)},
        {"share": float("inf")},
        {"most": 2},
        {"names": ["x", "y"]},
        {"names": "x"},
        {"place": "anything"},
        {"other": object()},
    ],
)
def test_a_value_of_the_right_type_is_taken(given: dict[str, Any]) -> None:
    Made(**given)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"on": "no"}, "True or False"),
        ({"on": 0}, "True or False"),
        ({"on": None}, "True or False"),
        ({"count": 3.0}, "a whole number"),
        ({"count": True}, "a whole number"),
        ({"share": "0.5"}, "a number"),
        ({"share": float("nan")}, "a number"),
        ({"share": False}, "a number"),
        ({"share": 1j}, "a number"),
        ({"name": 3}, "a text"),
        ({"name": b"x"}, "a text"),
        ({"kind": "c"}, "one of a, b"),
        ({"kind": ["a"]}, "one of a, b"),
        ({"most": "none"}, "a number or None"),
        ({"most": numpy.float64("nan")}, "a number or None"),
        ({"names": 3}, "a list, and each item a text"),
        ({"names": ["x", 3]}, "a list, and each item a text"),
    ],
)
def test_another_one_is_refused(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(OptionError) as caught:
        Made(**given)
    ((name, value),) = given.items()
    assert str(caught.value).startswith(f"Made: {name} must be {wanted}, got {value!r}. Use ")
    assert f"Use {name}=" in str(caught.value)
    assert isinstance(caught.value, UsageError)
    assert isinstance(caught.value, ValueError)
