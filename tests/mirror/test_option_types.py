"""An option of another type, or out of its range, is refused when the callback is made."""

import pytest

from trainer_callback import UsageError
from trainer_mirror import MirrorCallback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", "2"),
        ("keep", 0),
        ("retries", 1.5),
        ("retries", -1),
        ("wait", "60"),
        ("wait", float("inf")),
        ("wait", -1.0),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_one_that_works(name, value):
    with pytest.raises(UsageError) as caught:
        MirrorCallback("memory://x", **{name: value})
    text = str(caught.value)
    assert text.startswith(f"MirrorCallback: {name} must be ")
    assert f"got {value!r}" in text
    assert f"Use {name}=" in text


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="url has a password in it") as caught:
        MirrorCallback("sftp://me:hunter2@host/runs")
    assert "hunter2" not in str(caught.value)
    MirrorCallback("sftp://me@host/runs")


@pytest.mark.parametrize("url", ["nonsense://x", "gs://bucket/run"])
def test_a_url_without_a_client_is_refused_before_the_first_step(make, tmp_path, url):
    with pytest.raises(UsageError, match=f"there is no client for {url}"):
        make(MirrorCallback(url), place=tmp_path / "run").train()
