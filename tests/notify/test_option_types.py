"""An option of another type, or out of range, is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_notify import NotifyCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [("every_epochs", 0), ("every_epochs", 1.5), ("at_best", 1), ("monitor", 3), ("mode", "up")],
)
def test_a_value_that_will_not_do_is_refused_with_one_that_does(name, value):
    with pytest.raises(UsageError) as caught:
        NotifyCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"NotifyCallback: {name} must be ")
    assert f"got {value!r}" in text
