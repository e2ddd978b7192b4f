"""What comes behind the finished model, and who needs a place for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer import ConfigError, Run, Trainer, TrainerConfig
from trainer_callback import CallbackError, StopRequest, TrainerCallback


def square(model, batch):
    return model(batch).square().mean()


def make_parts():
    model = nn.Linear(4, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def make_trainer(callbacks, **settings):
    config = TrainerConfig(device="cpu", **{"epochs": 1, **settings})
    data = [torch.randn(2, 4)] * 2
    return Trainer(*make_parts(), data, loss_fn=square, config=config, callbacks=callbacks)


class Watch(TrainerCallback):
    def __init__(self):
        self.calls = []

    def on_train_end(self, result):
        self.calls.append("end")

    def on_final_saved(self, trainer, path):
        assert path == trainer.output_dir / "final"
        assert (path / "model.safetensors").exists()
        self.calls.append("final")

    def close(self):
        self.calls.append("close")


def test_the_finished_model_is_told_of_between_the_end_of_the_run_and_close(tmp_path):
    watch = Watch()
    make_trainer([watch], output_dir=tmp_path).train()
    assert watch.calls == ["end", "final", "close"]


def test_nothing_is_told_of_a_finished_model_that_is_not_written(tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self):
            raise ValueError("no more")

    watch, other = Watch(), Watch()
    make_trainer([watch]).train()
    with pytest.raises(CallbackError):
        make_trainer([other, Fails()], output_dir=tmp_path).train()
    assert watch.calls == other.calls == ["end", "close"]


def test_a_run_that_a_callback_stops_has_its_finished_model_told(tmp_path):
    class Stops(TrainerCallback):
        def should_stop_training(self):
            return StopRequest("enough", "")

    watch = Watch()
    make_trainer([watch, Stops()], output_dir=tmp_path).train()
    assert watch.calls == ["end", "final", "close"]


def test_a_failure_behind_the_finished_model_is_raised_and_the_model_stays(tmp_path):
    class Fails(TrainerCallback):
        def on_final_saved(self):
            raise OSError("no network")

    with pytest.raises(CallbackError, match=r"Fails.*on_final_saved.*no network"):
        make_trainer([Fails()], output_dir=tmp_path).train()
    assert (tmp_path / "final" / "model.safetensors").exists()


def test_one_that_is_not_critical_and_fails_behind_the_finished_model_is_in_the_result(tmp_path):
    class Fails(TrainerCallback):
        critical = False

        def on_final_saved(self):
            raise OSError("no network")

    result = make_trainer([Fails()], output_dir=tmp_path).train()
    assert result.switched_off == ("Fails",)


def test_a_callback_that_needs_an_output_directory_is_refused_without_one(tmp_path):
    class Needs(TrainerCallback):
        needs_output_dir = True

    with pytest.raises(ConfigError, match=r"Needs \(not installed\) needs an output directory"):
        make_trainer([Needs()])
    make_trainer([Needs()], output_dir=tmp_path)


class Plan(TrainerCallback):
    def on_train_start(self, trainer):
        self.start = (trainer.train_batches, trainer.max_steps, trainer.max_epochs)
        rest = (trainer.gradient_accumulation_steps, trainer.max_grad_norm, trainer.precision)
        self.rest = rest

    def on_epoch_start(self, trainer):
        self.later = (trainer.train_batches, trainer.max_steps, trainer.max_epochs)


def test_a_callback_knows_beforehand_how_long_the_run_will_be():
    plan = Plan()
    data = [torch.randn(2, 4)] * 5
    config = TrainerConfig(
        epochs=3, gradient_accumulation_steps=2, max_grad_norm=0.5, device="cpu", precision="auto"
    )
    result = Trainer(*make_parts(), data, loss_fn=square, config=config, callbacks=[plan]).train()
    assert plan.start == plan.later == (5, result.steps, 3) == (5, 9, 3)
    assert plan.rest == (2, 0.5, "fp32")


def test_in_a_loop_of_ones_own_the_length_is_known_with_the_loader():
    plan = Plan()
    run = Run(*make_parts(), config=TrainerConfig(epochs=2, device="cpu"), callbacks=[plan])
    with run.start():
        for _ in run.epochs():
            for batch in run.batches([torch.randn(2, 4)] * 3):
                run.backward(run.module(batch).square().mean())
                run.step()
    assert plan.start == (None, None, 2)
    assert plan.later == (3, 6, 2)


def test_a_loop_over_updates_has_no_epochs_to_count():
    plan = Plan()
    config = TrainerConfig(max_steps=4, device="cpu")
    run = Run(*make_parts(), config=config, callbacks=[plan])
    with run.start():
        for _ in run.updates():
            run.backward(run.module(torch.randn(2, 4)).square().mean())
            run.step()
    assert plan.later == (None, 4, None)
