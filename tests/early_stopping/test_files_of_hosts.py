"""Weights that no checkpoint of a host needs go, however the host names its checkpoints."""

from pathlib import Path

import pytest

from trainer_early_stopping.decision import State
from trainer_early_stopping.weights import BestWeights


class Run:
    """What is asked of a trainer here."""

    def __init__(self):
        self.deleted = []

    def delete_weights(self, name):
        self.deleted.append(name)


@pytest.mark.parametrize("name", ["checkpoint-%d", "step-%08d"])
def test_weights_of_a_checkpoint_that_is_gone_are_deleted(name, tmp_path: Path):
    state, trainer = State(fingerprint=("val_loss", "min", "abs")), Run()
    state.file_of_snapshot = {8: "first", 12: "second"}
    state.best_file = "third"
    for step in (12, 16):
        state.file_of_snapshot[step] = "second"
        (tmp_path / (name % step)).mkdir()
    BestWeights(None).tidy(trainer, state, tmp_path / (name % 16), 16)
    assert trainer.deleted == ["first"]
    assert state.file_of_snapshot == {12: "second", 16: "second"}


def test_a_name_that_does_not_tell_the_step_keeps_all(tmp_path: Path):
    state, trainer = State(fingerprint=("val_loss", "min", "abs")), Run()
    state.file_of_snapshot = {8: "first", 16: "second"}
    (tmp_path / "epoch=0-step=16.ckpt").mkdir()
    BestWeights(None).tidy(trainer, state, tmp_path / "epoch=0-step=16.ckpt", 16)
    assert trainer.deleted == []
