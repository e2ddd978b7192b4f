"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_gradient_monitor import GradientMonitorCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("monitor_at_snapshots", "no"),
        ("monitor_interval", 2.5),
        ("monitor_at_epochs", 1),
        ("monitor_level", "row"),
        ("monitor_depth", "2"),
        ("monitor_include", 3),
        ("monitor_exclude", [3]),
        ("monitor_norm_type", "2"),
        ("monitor_update_ratio", "no"),
        ("monitor_histogram", None),
        ("vanish_threshold", "x"),
        ("explode_threshold", None),
        ("on_nonfinite", "x"),
        ("report", "no"),
        ("history", 2.5),
    ],
)
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        GradientMonitorCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"GradientMonitorCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
