"""An option of another type, or out of range, is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_profiler import ProfilerCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wait", -1),
        ("warmup", 0),
        ("active", 1.5),
        ("repeat", "2"),
        ("record_shapes", 1),
        ("with_stack", "no"),
        ("profile_memory", None),
        ("memory_snapshot", 0),
    ],
)
def test_a_value_that_will_not_do_is_refused_with_one_that_does(name, value):
    with pytest.raises(UsageError) as caught:
        ProfilerCallback(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"ProfilerCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text
