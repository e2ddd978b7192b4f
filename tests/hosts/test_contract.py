"""The contract of a callback finds what is wrong in other trainers alone, in each that is there."""

import pytest

from trainer_callback.discovery import find_functions

from . import wrong_callbacks

LABELS = [host.label for host in find_functions("trainer.hosts")]

pytestmark = pytest.mark.skipif(not LABELS, reason="no other trainer is installed: see make hosts")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (wrong_callbacks.ReadsConfig, "wrong_callbacks reads trainer.config, which is that of a"),
        (wrong_callbacks.FailsElsewhere, "it fails: FailsElsewhere (not installed) failed in on_"),
        (wrong_callbacks.KeepsInSnapshots, "Return what it needs in on_snapshot_save, which is"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_right_at_home_only_fails_with_advice(kind, words, tmp_path):
    found = wrong_callbacks.check(kind, tmp_path / "there")
    assert found.outcome == "failed"
    for label in LABELS:
        (message,) = (m for m in ("in " + t for t in found.message.split("\nin ")) if label in m)
        assert words in message
    for number, clause in enumerate(wrong_callbacks.AT_HOME):
        assert wrong_callbacks.check(kind, tmp_path / str(number), clause).outcome == "passed"


def test_what_this_trainer_refuses_is_skipped_with_its_reason(tmp_path):
    found = wrong_callbacks.check(wrong_callbacks.Refuses, tmp_path)
    assert found.outcome == "skipped"
    for label in LABELS:
        assert f"not in {label}" in found.message
    assert "hold_snapshot: " in found.message
