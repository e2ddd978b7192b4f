"""What is not public in transformers, and is used."""

import pytest

pytest.importorskip("transformers", minversion="5.6")

import torch

from trainer_transformers import private

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")


def test_weights_are_loaded_from_a_checkpoint(tmp_path):
    trainer = make_trainer(scenarios.Case("a test"), tmp_path, num_train_epochs=1)
    trainer.train()
    kept = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    private.reload_weights(trainer, tmp_path / "checkpoint-5")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, kept[name])
