"""Verdicts and the lines about them."""

import math
from collections.abc import Callable

import pytest

from trainer_gradient_monitor.layers import Layer, Spread, sort_worst
from trainer_gradient_monitor.measurement import COLUMNS, Reading
from trainer_gradient_monitor.news import (
    describe_change,
    describe_disconnected,
    describe_nonfinite,
)
from trainer_gradient_monitor.verdicts import Verdict, judge, judge_all


@pytest.mark.parametrize(
    ("rms", "norm", "nonfinite", "verdict"),
    [
        (1e-3, 1.0, 0, "healthy"),
        (0.99e-7, 1e-5, 0, "vanishing"),
        (1e-7, 1e-5, 0, "healthy"),
        (0.0, 0.0, 0, "vanishing"),
        (1.0, 50.0, 0, "healthy"),
        (1.0, 50.1, 0, "exploding"),
        (1e-9, 50.1, 0, "exploding"),
        (math.nan, math.nan, 3, "non-finite"),
        (1e-3, 1.0, 1, "non-finite"),
        (math.inf, math.inf, 0, "non-finite"),
    ],
)
def test_a_layer_is_judged_by_strict_comparison(
    rms: float, norm: float, nonfinite: float, verdict: Verdict
) -> None:
    limits = {"vanish_threshold": 1e-7, "explode_limit": 50.0}
    assert judge(rms=rms, norm=norm, nonfinite=nonfinite, **limits) == verdict


@pytest.fixture
def make_reading() -> Callable[..., Reading]:
    def make(rms: dict[str, float], **facts: object) -> Reading:
        columns = {name: [0.0] * len(rms) for name in COLUMNS}
        columns["rms"] = columns["norm"] = list(rms.values())
        values: dict[str, object] = {
            "rows": tuple(rms),
            "columns": columns,
            "total_norm": 1.0,
            "clipped": 0,
            "nonfinite": {},
            "disconnected": (),
            "histogram": None,
            **facts,
        }
        return Reading(**values)  # type: ignore[arg-type]

    return make


def test_a_row_without_gradient_is_disconnected_if_it_should_have_one(
    make_reading: Callable[..., Reading],
) -> None:
    groups = {"a": ("a.w",), "frozen": ("f.w",), "lost": ("l.w",)}
    reading = make_reading({"a": 1.0}, disconnected=("l.w",))
    verdicts = judge_all(groups, reading, vanish_threshold=1e-7, explode_limit=math.inf)
    assert verdicts == {"a": "healthy", "lost": "disconnected"}


def test_a_change_is_told_worst_first_and_long_lists_are_cut() -> None:
    old: dict[str, Verdict] = {"a": "vanishing", "b": "healthy"}
    new: dict[str, Verdict] = {"a": "healthy", "b": "exploding", "c": "healthy"}
    new |= {f"v{i}": "vanishing" for i in range(6)}
    assert describe_change(old, new) == (
        "exploding: b; vanishing: v0, v1, v2, v3 and 2 more; healthy again: a"
    )
    assert describe_change(new, new) == ""


def test_only_new_disconnections_are_told() -> None:
    assert describe_disconnected([], ["a", "b"]).endswith("got none: a, b")
    assert describe_disconnected(["a", "b"], ["b"]) == ""


def test_the_first_non_finite_parameter_is_named(make_reading: Callable[..., Reading]) -> None:
    reading = make_reading({"a": 1.0}, nonfinite={"a.w": 2, "b.w": 1}, total_norm=math.nan)
    assert describe_nonfinite(reading) == (
        "NaN or infinite gradients in 2 parameters, the first is a.w with 2 entries"
    )
    assert "total norm" in describe_nonfinite(make_reading({"a": 1.0}, total_norm=math.inf))
    assert describe_nonfinite(make_reading({"a": 1.0})) == ""


def test_the_worst_come_first() -> None:
    facts: list[tuple[str, Verdict, float]] = [
        ("good", "healthy", 1.0),
        ("better", "healthy", 2.0),
        ("small", "vanishing", 1e-9),
        ("smaller", "vanishing", 1e-12),
        ("large", "exploding", 1e3),
        ("larger", "exploding", 1e4),
        ("lost", "disconnected", 0.0),
        ("bad", "non-finite", math.nan),
    ]
    expected = ["bad", "larger", "large", "lost", "smaller", "small", "good", "better"]
    nothing = Spread(None, None, None)
    layers = [Layer(name, verdict, nothing, nothing, {"rms": rms}) for name, verdict, rms in facts]
    assert [layer.name for layer in sort_worst(layers)] == expected
