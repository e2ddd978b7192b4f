"""The sets of a validation, and their batches, as plugins are told of them."""

import pytest

pytest.importorskip("lightning")

import torch

from trainer_callback import TrainerCallback

from . import runs

pytestmark = pytest.mark.filterwarnings("ignore")


class Sets(TrainerCallback):
    """Writes down what it is told of sets."""

    def __init__(self):
        self.told = []

    def on_validation_set_start(self, name):
        self.told.append(name)

    def on_validation_batch_end(self, name, batch_idx, batch, loss, outputs):
        assert outputs.shape == batch[1].shape
        self.told.append((name, batch_idx))

    def on_validation_set_end(self, name, metrics):
        self.told.append({name: sorted(metrics)})


class Shows(runs.Module):
    """Answers what it has found in a batch."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = runs.loss_of(self, batch)
        self.log("val_loss", loss, batch_size=len(batch[0]))
        return {"loss": loss, "outputs": self(batch[0])}


def fit(place, sets, module, counts):
    loaders = [runs.make_loader(n, count) for n, count in enumerate(counts, 1)]
    trainer, _ = runs.make_host(place, [sets], epochs=1)
    trainer.fit(module, runs.make_loader(0, 2), loaders)


def test_a_set_that_is_alone_is_told_with_its_metrics(tmp_path):
    sets = Sets()
    fit(tmp_path, sets, Shows(), [2])
    assert sets.told == ["val", ("val", 0), ("val", 1), {"val": ["loss"]}]


def test_each_of_several_sets_is_told_by_its_number(tmp_path):
    sets = Sets()
    fit(tmp_path, sets, Shows(), [1, 2])
    names = [each for each in sets.told if not isinstance(each, dict)]
    assert names == ["val_0", ("val_0", 0), "val_1", ("val_1", 0), ("val_1", 1)]
    assert sets.told[2] == {"val_0": []}  # it computes its metrics at the end of all


def test_who_waits_for_batches_that_do_not_come_is_named(tmp_path, caplog):
    fit(tmp_path, Sets(), runs.Module(), [2])
    assert "Lightning shows no batches of the validation set 'val', which Sets" in caplog.text
    assert "Return the loss in validation_step" in caplog.text


def test_what_a_step_answers_as_outputs_is_what_plugins_are_shown(tmp_path):
    class Trains(runs.Module):
        def training_step(self, batch, batch_idx):
            return {"loss": runs.loss_of(self, batch), "outputs": batch[1]}

    class Looks(TrainerCallback):
        def on_batch_end(self, outputs):
            shapes.append(outputs.shape)

    shapes = []
    runs.train_host(tmp_path, [Looks()], module=Trains(), epochs=1)
    assert shapes == [torch.Size([runs.SIZE, 1])] * runs.BATCHES
