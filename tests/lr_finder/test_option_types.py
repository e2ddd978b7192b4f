"""An option of another type, or out of range, is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_lr_finder import LRFinderCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", 0.0),
        ("start", "1"),
        ("end", 1e-8),
        ("end", float("inf")),
        ("steps", 9),
        ("steps", 20.5),
        ("suggestion", "best"),
        ("smoothing", 1.0),
        ("stop_factor", 1),
        ("apply", "yes"),
    ],
)
def test_a_value_that_will_not_do_is_refused_with_one_that_does(name, value):
    with pytest.raises(UsageError) as caught:
        LRFinderCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"LRFinderCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
