"""An option of another type is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_optuna import OptunaCallback


@pytest.mark.parametrize(("name", "value"), [("monitor", 3), ("report_at", "step")])
def test_an_option_of_another_type_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        OptunaCallback(None, **{name: value})
    text = str(caught.value)
    assert text.startswith(f"OptunaCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
