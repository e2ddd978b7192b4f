"""Which parameters make up which row."""

import pytest

from trainer_gradient_monitor.groups import group_parameters

NAMES = [
    "position",
    "embed.weight",
    "blocks.0.attention.query.weight",
    "blocks.0.attention.query.bias",
    "blocks.0.mlp.weight",
    "blocks.1.mlp.weight",
    "head.weight",
]


@pytest.mark.parametrize(
    ("depth", "rows"),
    [
        (1, ["position", "embed", "blocks", "head"]),
        (2, ["position", "embed", "blocks.0", "blocks.1", "head"]),
        (
            3,
            ["position", "embed", "blocks.0.attention", "blocks.0.mlp", "blocks.1.mlp", "head"],
        ),
    ],
)
def test_layers_are_module_paths_cut_at_the_depth(depth: int, rows: list[str]) -> None:
    assert list(group_parameters(NAMES, "layer", depth)) == rows


def test_a_row_has_all_parameters_below_it() -> None:
    rows = group_parameters(NAMES, "layer", 2)
    assert rows["blocks.0"] == tuple(name for name in NAMES if name.startswith("blocks.0."))
    assert sum(rows.values(), ()) == tuple(NAMES)


def test_the_level_parameter_has_a_row_each_and_global_one() -> None:
    assert group_parameters(NAMES, "parameter", 2) == {name: (name,) for name in NAMES}
    assert group_parameters(NAMES, "global", 2) == {"global": tuple(NAMES)}


def test_filters_are_glob_patterns_on_parameter_names() -> None:
    rows = group_parameters(NAMES, "layer", 2, include=["blocks.*"], exclude=["*.bias", "*.1.*"])
    expected = ("blocks.0.attention.query.weight", "blocks.0.mlp.weight")
    assert rows == {"blocks.0": expected}
    assert group_parameters(NAMES, "layer", 2, include=["nothing*"]) == {}
