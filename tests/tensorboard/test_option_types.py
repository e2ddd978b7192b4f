"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_tensorboard import TensorBoardCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("histogram_epochs", "no"),
        ("histogram_epochs", 1.5),
        ("histogram_epochs", None),
    ],
)
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        TensorBoardCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"TensorBoardCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
