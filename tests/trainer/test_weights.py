"""Weights that a callback keeps by a name of its own: `weights/NAME/`, outside retention."""

import pytest
import torch

from trainer.snapshots.manifest import verify
from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import SnapshotError, TrainerCallback


class Keeper(TrainerCallback):
    """Keeps the weights of update 2, and writes others under the same name at the end."""

    def __init__(self, at_the_end):
        self.at_the_end = at_the_end
        self.digest = ""
        self.weights = {}

    def on_step_end(self, trainer):
        if trainer.step == 2:
            self.digest = trainer.save_weights("mine")
            self.weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}

    def on_train_end(self, trainer, result):
        self.at_the_end(self, trainer)


def is_at_update_2(keeper, trainer):
    own = trainer.model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in keeper.weights.items())


def test_weights_come_back_bit_by_bit_and_retention_lets_them_be(tiny, tmp_path):
    def load(keeper, trainer):
        verify(tmp_path / "weights" / "mine")
        assert not is_at_update_2(keeper, trainer)
        assert trainer.load_weights("mine", keeper.digest) == "weights/mine"
        assert is_at_update_2(keeper, trainer)

    tiny.trainer(tmp_path, keep_snapshots=1, callbacks=[Keeper(load)]).train()
    assert len(list_snapshots(tmp_path / "snapshots")) == 1


@pytest.mark.parametrize("damage", ["other weights", "flipped", "gone"])
def test_weights_that_are_not_those_saved_are_refused_or_come_from_the_snapshot(
    tiny, tmp_path, damage
):
    def load(keeper, trainer):
        file = tmp_path / "weights" / "mine" / "state.pt"
        if damage == "other weights":
            trainer.save_weights("mine")
        elif damage == "gone":
            trainer.delete_weights("mine")
        else:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        with pytest.raises(SnapshotError, match="weights/mine"):
            trainer.load_weights("mine", keeper.digest)
        assert not is_at_update_2(keeper, trainer)
        source = trainer.load_weights("mine", keeper.digest, fallback_step=2)
        assert source == "snapshots/step-00000002"
        assert is_at_update_2(keeper, trainer)

    trainer = tiny.trainer(tmp_path, keep_snapshots=9, callbacks=[Keeper(load)])
    assert trainer.train().status == "finished"
