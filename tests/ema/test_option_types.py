"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_ema import EMACallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay", "0.9"),
        ("warmup", "no"),
        ("start_step", 1.5),
        ("every", True),
        ("use_buffers", "no"),
        ("use_for_validation", None),
        ("swap_at_end", 0),
    ],
)
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        EMACallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"EMACallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
