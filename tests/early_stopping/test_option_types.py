"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_early_stopping import EarlyStoppingCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("restore_best", "no"),
        ("monitor", 3),
        ("strict", "yes"),
        ("check_finite", 1),
        ("state_key", 5),
        ("mode", 3),
        ("check_on", None),
        ("min_epochs", "2"),
        ("baseline", "1"),
    ],
)
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        EarlyStoppingCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"EarlyStoppingCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
