"""`result.weights`: whose weights the model has at the end of a run."""

import json

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import CallbackError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback

LOSSES = (1.0, 0.25, 0.5, 0.75, 0.875)


def make(*callbacks, losses=LOSSES, **config):
    """Two updates an epoch, and the validation losses of `losses`, one an epoch."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def loss_fn(model, batch):
        if model.training:
            return model(batch).square().mean()
        return torch.tensor(losses[trainer.epoch])

    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [*torch.arange(16.0).reshape(2, 2, 4).sin()],
        [torch.zeros(1, 4)],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": len(losses), **config}),
        callbacks=callbacks,
        discover=False,
    )
    return trainer


def facts(weights):
    return weights.kind, weights.epoch, weights.step, weights.metrics.get("val_loss")


def test_without_a_callback_they_are_the_last_ones(tmp_path):
    result = make(output_dir=tmp_path).train()
    assert facts(result.weights) == ("last", 4, 10, 0.875)
    assert result.weights.metrics == {
        name: value for name, value in result.history[-1].items() if name not in ("epoch", "step")
    }
    manifest = json.loads((tmp_path / "final/manifest.json").read_text())
    assert manifest["weights"]["kind"] == "last"


def test_a_run_that_ends_inside_an_epoch_has_no_metrics_of_its_last_weights():
    result = make(max_steps=3, eval_interval=2).train()
    assert result.weights.kind == "last"
    assert result.weights.step == 3


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_best_ones_of_early_stopping_are_named_with_their_metrics(tmp_path, on_disk):
    config = {"output_dir": tmp_path} if on_disk else {}
    result = make(EarlyStoppingCallback(patience=2), **config).train()
    assert facts(result.weights) == ("restored", 1, 4, 0.25)
    assert result.weights.metrics["train_loss"] == result.history[1]["train_loss"]
    assert result.val_loss == 0.75
    assert "early stopping's best val_loss, 0.25" in str(result.weights)
    if on_disk:
        manifest = json.loads((tmp_path / "final/manifest.json").read_text())
        assert manifest["weights"]["step"] == 4
        assert manifest["weights"]["metrics"]["val_loss"] == 0.25


def test_best_ones_that_are_the_last_are_the_last():
    result = make(EarlyStoppingCallback(patience=2), losses=(1.0, 0.5)).train()
    assert facts(result.weights) == ("last", 1, 4, 0.5)


@pytest.mark.parametrize("stopped", [True, False])
def test_they_are_the_same_after_a_resume(tmp_path, stopped):
    def callback():
        return EarlyStoppingCallback(patience=2 if stopped else 9)

    alone = make(callback(), output_dir=tmp_path / "alone").train()
    place = {"output_dir": tmp_path / "run", "snapshot_interval": 1}
    make(callback(), max_steps=5, **place).train()
    for _ in range(2):  # the second time there is nothing left to train
        result = make(callback(), **place).train(resume=True)
        assert result.weights == alone.weights
        assert facts(result.weights) == ("restored", 1, 4, 0.25)


class Averages(TrainerCallback):
    """Changes the weights at the end, in place, and says nothing."""

    def __init__(self, change):
        self.change = change

    def on_train_end(self, trainer):
        self.change(trainer.model)


CHANGES = {
    "in place": lambda model: model.weight.detach().mul_(0.5),
    "through data": lambda model: model.weight.data.mul_(0.5),
    "load_state_dict": lambda model: model.load_state_dict(
        {name: 2 * tensor for name, tensor in model.state_dict().items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_at_the_end_without_a_word_is_told(change):
    result = make(Averages(CHANGES[change])).train()
    assert facts(result.weights) == ("changed", 4, 10, None)
    assert result.weights.detail == "a callback has changed them at the end of the run"


def test_a_callback_that_changes_nothing_at_the_end_is_not_blamed():
    assert make(Averages(lambda model: None)).train().weights.kind == "last"


def test_an_average_says_so_and_early_stopping_has_the_last_word():
    result = make(EMACallback(decay=0.5)).train()
    assert facts(result.weights) == ("changed", 4, 10, 0.875)  # with which it was validated
    assert result.weights.detail == "the average over 10 updates"
    other = make(EMACallback(decay=0.5, use_for_validation=False)).train()
    assert facts(other.weights) == ("changed", 4, 10, None)
    both = make(EMACallback(decay=0.5), EarlyStoppingCallback(patience=2)).train()
    assert facts(both.weights) == ("restored", 1, 4, 0.25)


class Rewinds(TrainerCallback):
    """Goes back to the weights of one update behind another one."""

    def __init__(self, at):
        self.at, self.digest = at, None

    def on_epoch_end(self, trainer):
        if trainer.step == 4:
            self.digest = trainer.save_weights("mine")
        if trainer.step == self.at:
            trainer.load_weights("mine", self.digest)

    def on_snapshot_save(self):
        return {"digest": self.digest}

    def on_snapshot_load(self, state):
        self.digest = state["digest"]


@pytest.mark.parametrize(("at", "expected"), [(8, ("last", 4, 10)), (10, ("restored", 1, 4))])
def test_weights_put_back_in_a_run_count_until_the_next_update(tmp_path, at, expected):
    result = make(Rewinds(at), output_dir=tmp_path).train()
    assert facts(result.weights)[:3] == expected
    if expected[0] == "restored":
        assert result.weights.detail == "from weights/mine"
        assert result.weights.metrics["val_loss"] == 0.25
        again = make(Rewinds(99), output_dir=tmp_path).train(resume=True)  # from the last snapshot
        assert again.weights == result.weights


def test_two_processes_name_the_same(tiny, tmp_path):
    def work(rank):
        result = make(EarlyStoppingCallback(patience=2), output_dir=tmp_path).train()
        assert facts(result.weights)[0] == "restored"
        assert result.weights.metrics == {
            name: v for name, v in result.history[1].items() if name not in ("epoch", "step")
        }

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"detail": 3}, "detail must be a str"),
        ({"detail": "a", "epoch": 3}, "step and epoch are integers"),
        ({"detail": "a", "epoch": -1, "step": 3}, "step and epoch are integers"),
    ],
)
def test_a_note_that_is_none_is_refused(arguments, text):
    class Notes(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.note_weights(**arguments)

    with pytest.raises(CallbackError, match=text):
        make(Notes()).train()


def test_the_end_of_a_run_is_told_before_callbacks_change_the_weights():
    seen = []

    class Looks(TrainerCallback):
        before = ("early_stopping",)

        def on_train_end(self, result):
            seen.append(result.weights)

    make(Looks(), EarlyStoppingCallback(patience=2)).train()
    assert facts(seen[0]) == ("last", 3, 8, 0.75)
