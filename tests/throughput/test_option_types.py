"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_throughput import ThroughputCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval", 1.5),
        ("window", "9"),
        ("peak_tflops", "x"),
        ("flops_per_item", True),
    ],
)
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        ThroughputCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"ThroughputCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
