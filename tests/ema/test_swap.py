"""When the averages stand in the model, and that the weights come back bit by bit."""

import os
import signal

import pytest
import torch
from torch.testing import assert_close

from trainer_callback import CallbackError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback


@pytest.mark.parametrize("options", [{}, {"use_for_validation": False}, {"every": 4}])
def test_the_trained_weights_are_those_of_a_run_without(make, options):
    plain, averaged = make(), make(EMACallback(decay=0.9, swap_at_end=False, **options))
    plain.train()
    averaged.train()
    assert torch.equal(plain.model.weight, averaged.model.weight)


@pytest.mark.parametrize("first", [True, False], ids=["ema_first", "ema_last"])
def test_the_average_is_validated_whatever_the_order(make, weights, average_of, first):
    ema = EMACallback(decay=0.9)
    trainer = make(*([ema, weights] if first else [weights, ema]), eval_interval=2)
    trainer.train()
    seen = zip([2, 4, 5, 6, 8, 10], weights.validated, strict=True)
    for step, validated in seen:
        assert_close(validated, average_of(weights.trained[:step], 0.9))


def test_a_callback_that_was_given_first_finds_the_average_at_the_start_too(make, weights):
    class Look(TrainerCallback):
        def on_validation_start(self, trainer):
            self.found = trainer.model.weight.detach().clone()

    look = Look()
    make(look, EMACallback(decay=0.9), weights).train()
    assert torch.equal(look.found, weights.validated[-1])


def test_the_validation_loss_is_that_of_the_average(make, weights, average_of):
    class Look(TrainerCallback):
        def on_validation_batch_end(self, batch):
            self.batch = batch

    look = Look()
    trainer = make(EMACallback(decay=0.9), weights, look)
    result = trainer.train()
    trainer.model.eval()
    assert result.val_loss == trainer._loss_of(look.batch).item()


def test_without_use_for_validation_the_weights_are_validated(make, weights):
    make(EMACallback(decay=0.9, use_for_validation=False), weights).train()
    assert torch.equal(weights.validated[-1], weights.trained[-1])


def test_without_swap_at_end_the_model_keeps_its_weights(make, weights):
    trainer = make(EMACallback(decay=0.9, swap_at_end=False), weights)
    trainer.train()
    assert torch.equal(trainer.model.weight, weights.trained[-1])


def test_the_last_snapshot_holds_weights_and_average_and_final_the_average(
    make, weights, average_of, tmp_path
):
    make(EMACallback(decay=0.9), weights, output_dir=tmp_path, snapshot_epochs=True).train()
    snapshot = tmp_path / "snapshots" / "step-00000010"
    state = torch.load(snapshot / "state.pt", weights_only=True)
    final = torch.load(tmp_path / "final" / "state.pt", weights_only=True)
    saved = state["callback_state"]["EMACallback"]["averages"]["weight"]
    assert torch.equal(state["model"]["weight"], weights.trained[-1])
    assert torch.equal(final["model"]["weight"], saved)
    assert_close(saved, average_of(weights.trained, 0.9))


def test_a_validation_that_a_signal_cuts_short_gives_the_weights_back(make, weights):
    class Terminate(TrainerCallback):
        def on_validation_start(self):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make(EMACallback(decay=0.9), weights, Terminate())
    assert trainer.train().status == "terminated"
    assert not torch.equal(weights.validated[-1], weights.trained[-1])
    assert torch.equal(trainer.model.weight, weights.trained[-1])


def test_a_validation_that_fails_gives_the_weights_back(make, weights):
    def loss_fn(model, batch):
        if not model.training:
            raise RuntimeError("no validation")
        return model(batch).square().mean()

    trainer = make(EMACallback(decay=0.9), weights, loss_fn=loss_fn)
    with pytest.raises(RuntimeError, match="no validation"):
        trainer.train()
    assert torch.equal(trainer.model.weight, weights.trained[-1])


def test_another_callback_that_fails_in_a_validation_gives_the_weights_back(make, weights):
    class Faulty(TrainerCallback):
        def on_validation_end(self):
            raise KeyError("accuracy")

    trainer = make(Faulty(), weights, EMACallback(decay=0.9))
    with pytest.raises(CallbackError, match="Faulty"):
        trainer.train()
    assert torch.equal(trainer.model.weight, weights.trained[-1])


@pytest.mark.parametrize("first", [True, False], ids=["ema_first", "ema_last"])
@pytest.mark.parametrize("output", [True, False], ids=["file", "memory"])
def test_early_stopping_restores_the_best_average(make, weights, tmp_path, first, output):
    """The losses are best at the second of six validations, whatever the weights."""
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])

    def loss_fn(model, batch):
        if not model.training:
            return torch.tensor(next(losses))
        return (model(batch) - 1).square().mean()

    callbacks = [EMACallback(decay=0.9), EarlyStoppingCallback(patience=10)]
    trainer = make(
        *(callbacks if first else callbacks[::-1]),
        weights,
        loss_fn=loss_fn,
        eval_interval=2,
        output_dir=tmp_path if output else None,
    )
    trainer.train()
    assert torch.equal(trainer.model.weight, weights.validated[1])


def test_early_stopping_whose_last_check_is_the_best_leaves_the_last_average(make, weights):
    losses = iter([3.0, 2.0])

    def loss_fn(model, batch):
        if not model.training:
            return torch.tensor(next(losses))
        return (model(batch) - 1).square().mean()

    trainer = make(EarlyStoppingCallback(), EMACallback(decay=0.9), weights, loss_fn=loss_fn)
    trainer.train()
    assert torch.equal(trainer.model.weight, weights.validated[-1])
