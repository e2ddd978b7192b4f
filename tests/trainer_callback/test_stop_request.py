"""What an answer that ends a run has to say."""

import pytest

from trainer_callback import StopRequest


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ((5, ""), TypeError, "reason must be a str, got 5"),
        (("enough", None), TypeError, "detail must be a str, got None"),
        (("", ""), ValueError, "reason must be one line and not empty"),
        ((" ", "why"), ValueError, "reason must be one line and not empty"),
        (("one\ntwo", "why"), ValueError, "reason must be one line and not empty"),
    ],
)
def test_a_stop_request_that_does_not_say_why_is_refused(given, error, told):
    with pytest.raises(error, match=told):
        StopRequest(*given)


def test_a_detail_may_be_empty_or_long():
    assert StopRequest("enough").detail == ""
    assert StopRequest("enough", "one\ntwo").detail == "one\ntwo"
