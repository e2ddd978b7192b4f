"""The state of plugins in a checkpoint, and whose it is."""

import pytest

from trainer.hosting import SavedState, StateFileError, read_state_file, write_state_file


def test_a_state_of_another_run_is_said_and_with_strict_refused(tmp_path, caplog):
    write_state_file(tmp_path, SavedState(3, {"x": 1}, {}), mark="one")
    assert read_state_file(tmp_path, 3, mark="another") is None
    assert "is of another run than the rest of the checkpoint" in caplog.text
    with pytest.raises(StateFileError, match="of another run"):
        read_state_file(tmp_path, 3, mark="another", strict=True)


@pytest.mark.parametrize(("written", "asked"), [("one", "one"), (None, "one"), ("one", None)])
def test_a_state_of_the_same_run_or_of_one_that_nobody_knows_is_taken(written, asked, tmp_path):
    write_state_file(tmp_path, SavedState(3, {"x": 1}, {}), mark=written)
    found = read_state_file(tmp_path, 3, mark=asked)
    assert found is not None
    assert found.state == {"x": 1}
