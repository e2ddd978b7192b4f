"""The plugins of a Lightning trainer see and do what those of a `trainer.Trainer` do."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")

import torch

from trainer.testing import Recorder
from trainer_callback import StopRequest, TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_lightning import Plugins

from .runs import (
    Module,
    assert_same_run,
    make_host,
    make_loader,
    make_optimizer,
    read_records,
    save_each,
    train_home,
    train_host,
)

pytestmark = pytest.mark.filterwarnings("ignore")

LEFT_OUT = {
    *("on_snapshot_save", "on_snapshot_saved", "on_final_saved"),
    *("on_validation_set_start", "on_validation_set_end", "on_validation_batch_end"),
}


def describe(recorder):
    return [
        (call.hook, call.step, call.epoch, {**call.arguments}.get("batch_idx"))
        for call in recorder.calls
        if call.hook not in LEFT_OUT
    ]


@pytest.mark.parametrize("window", [1, 2])
def test_callbacks_see_the_calls_that_they_see_in_a_trainer(window, tmp_path):
    at_home, hosted = Recorder(), Recorder()
    train_home(tmp_path / "home", [at_home], window=window, max_grad_norm=1.0)
    train_host(tmp_path, [hosted], window=window, gradient_clip_val=1.0)
    assert describe(hosted) == describe(at_home)


def test_plugins_decide_record_and_keep_weights_as_in_a_trainer(tmp_path):
    def make():
        return [
            EarlyStoppingCallback(patience=1, min_delta=0.5),
            EMACallback(),
            GradientMonitorCallback(monitor_interval=1, report=False),
        ]

    expected = train_home(tmp_path / "home", make(), max_grad_norm=1.0)
    found = train_host(tmp_path, make(), gradient_clip_val=1.0)
    assert_same_run(tmp_path, found, tmp_path / "home", expected)
    assert found[0].status == "stopped"
    assert (tmp_path / "plugins" / "gradient_flow/gradients.jsonl").read_bytes() == (
        tmp_path / "home" / "gradient_flow/gradients.jsonl"
    ).read_bytes()


def test_the_outputs_of_a_step_are_what_it_answers_beside_the_loss(tmp_path):
    seen = []

    class Looks(TrainerCallback):
        def on_forward_end(self, loss, outputs):
            seen.append((loss.item(), outputs["answer"]))

        def on_batch_end(self, loss, outputs):
            seen.append((loss.item(), outputs["answer"]))

    class Answers(Module):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "answer": batch_idx}

    train_host(tmp_path, [Looks()], module=Answers(), epochs=1, window=3)
    assert [answer for _, answer in seen] == [number for number in range(6) for _ in range(2)]
    assert seen[0][0] == seen[1][0]


def test_a_failure_in_the_module_is_told_and_everything_is_put_back(tmp_path):
    heard = Recorder()

    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ConnectionError("gone")
            return super().training_step(batch, batch_idx)

    module = Fails()
    trainer, entry = make_host(tmp_path, [heard])
    with pytest.raises(ConnectionError, match="gone"):
        trainer.fit(module, make_loader(0, 6), make_loader(1, 5))
    assert (entry.result.status, entry.result.stop_reason) == ("failed", "ConnectionError")
    assert [call.hook for call in heard.calls][-2:] == ["on_exception", "on_train_end"]
    assert "training_step" not in vars(module)
    assert "save_checkpoint" not in vars(trainer)
    assert "clip_grad_by_norm" not in vars(trainer.precision_plugin)
    assert trainer.loggers == []


def test_ctrl_c_is_an_interrupted_run(tmp_path):
    class Interrupts(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 2:
                raise KeyboardInterrupt

    trainer, entry = make_host(tmp_path, [Interrupts()])
    with pytest.raises(SystemExit):
        trainer.fit(Module(), make_loader(0, 6), make_loader(1, 5))
    assert (entry.result.status, entry.result.stop_reason) == ("interrupted", "SIGINT")


def test_a_callback_that_is_not_critical_is_switched_off_and_the_run_goes_on(tmp_path):
    class Fails(TrainerCallback):
        critical = False

        def on_step_end(self):
            raise ValueError("weak")

    result, _, _ = train_host(tmp_path, [Fails()], epochs=1)
    assert (result.status, result.switched_off) == ("finished", ("Fails",))


def test_a_stop_inside_an_epoch_validates_and_ends_that_epoch_once(tmp_path):
    class Stops(TrainerCallback):
        def should_stop_training(self, trainer):
            return trainer.step == 8 and StopRequest("enough")

    heard = Recorder()
    expected = train_home(tmp_path / "home", [Stops()])
    found = train_host(tmp_path, [Stops(), heard])
    assert_same_run(tmp_path, found, tmp_path / "home", expected)
    assert found[0].stop_reason == "enough"
    assert len(heard.of("on_validation_end")) == len(heard.of("on_epoch_end")) == 2


def test_min_steps_of_the_trainer_overrule_a_plugin_whose_wish_is_not_latched(tmp_path):
    class Stops(TrainerCallback):
        def should_stop_training(self, trainer):
            return trainer.step == 2

    result, _, trainer = train_host(tmp_path, [Stops()], min_steps=9)
    assert (result.status, result.steps, trainer.global_step) == ("finished", 18, 18)


def test_what_the_module_logs_is_recorded_and_nothing_twice(tmp_path):
    class Logs(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            self.log("accuracy", 0.5)
            return loss

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val/accuracy", 0.25)

    train_host(tmp_path, [], module=Logs(), epochs=1)
    records = read_records(tmp_path / "plugins")
    assert [line["accuracy"] for line in records if "accuracy" in line] == [0.5] * 6
    assert sum("train_loss" in line for line in records) == 1
    assert [line["val_accuracy"] for line in records if "val_loss" in line] == [0.25]


def test_a_validation_loss_of_another_name_is_named(tmp_path, caplog):
    class Other(Module):
        def validation_step(self, batch, batch_idx):
            self.log("valid/nll", 2.0)

    entry = Plugins([], discover=False, val_loss="valid/nll")
    assert train_host(tmp_path, [], module=Other(), entry=entry, epochs=1)[0].val_loss == 2.0
    assert "val_loss" not in caplog.text
    train_host(tmp_path / "b", [], module=Other(), epochs=1)
    assert "but val_nll. Log it as val_loss, or say which it is: Plugins(..., val_loss=" in (
        caplog.text
    )


def test_a_validation_outside_of_fit_and_the_sanity_check_are_not_told(tmp_path):
    heard = Recorder()
    trainer, _ = make_host(tmp_path, [heard], epochs=1, num_sanity_val_steps=2)
    module = Module()
    trainer.fit(module, make_loader(0, 6), make_loader(1, 5))
    trainer.validate(module, make_loader(1, 5), verbose=False)
    assert len(heard.of("on_validation_start")) == len(heard.of("on_validation_end")) == 1


def test_a_trainer_is_used_for_a_second_run(tmp_path):
    heard = Recorder()
    trainer, entry = make_host(tmp_path, [heard], epochs=1)
    trainer.fit(Module(), make_loader(0, 6), make_loader(1, 5))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Module(), make_loader(0, 6), make_loader(1, 5))
    assert len(heard.of("on_train_end")) == 2
    assert entry.result.status == "finished"
    assert (tmp_path / "plugins-1").is_dir()


def test_a_requested_snapshot_is_a_checkpoint_of_lightning(tmp_path):
    saved = []

    class Asks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 2:
                trainer.request_snapshot()

        def on_snapshot_saved(self, path, step):
            saved.append((path.name, step, path.exists()))

    train_host(tmp_path, [Asks()], epochs=1, others=[save_each(tmp_path)])
    assert saved == [("requested-step=2.ckpt", 2, True), ("step=6.ckpt", 6, True)]


def test_a_snapshot_that_is_due_is_known_before(tmp_path):
    due = []

    class Looks(TrainerCallback):
        def on_backward_end(self, trainer):
            due.append(trainer.snapshot_due)

    train_host(tmp_path, [Looks()], epochs=1, others=[save_each(tmp_path)])
    assert due == [False] * 5 + [True]
    due.clear()
    others = [save_each(tmp_path / "b", every_n_train_steps=2)]
    train_host(tmp_path / "b", [Looks()], epochs=1, others=others)
    assert due == [False, True] * 3


class TwoOptimizers(Module):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    def training_step(self, batch, batch_idx):
        return None

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Newton(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("module", "said"),
    [(TwoOptimizers, "automatic_optimization = False"), (Newton, "LBFGS computes several losses")],
)
def test_what_plugins_cannot_be_told_of_is_refused_before_the_first_step(module, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        train_host(tmp_path, [], module=module())


def test_what_is_approximate_is_said_once_at_the_start(tmp_path, caplog):
    train_host(tmp_path, [], window=4, others=[save_each(tmp_path, every_n_train_steps=1)])
    said = [each.message for each in caplog.records if each.message.startswith("Lightning: ")]
    assert [text.split(",")[0] for text in said] == [
        "Lightning: the last update of an epoch has 2 of 4 batches",
        "Lightning: checkpoints are saved inside epochs",
        "Lightning: from a checkpoint that is saved at the last update of an epoch",
    ]


def test_the_schedule_has_stepped_where_a_step_ends(tmp_path):
    rates = []

    class Looks(TrainerCallback):
        def on_step_end(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    class Scheduled(Module):
        def configure_optimizers(self):
            optimizer = make_optimizer(self, rate=1.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    train_host(tmp_path, [Looks()], module=Scheduled(), epochs=1)
    assert rates == [0.5**step for step in range(1, 7)]
    rated = [line["learning_rate"] for line in read_records(tmp_path / "plugins") if "loss" in line]
    assert rated == [0.5**step for step in range(6)]


def test_the_other_package_of_lightning_is_used_where_it_is_the_imported_one(run_script):
    run_script(
        """
        import pytorch_lightning as pl, trainer_lightning
        assert issubclass(trainer_lightning.Plugins, pl.Callback)
        import sys; assert "lightning.pytorch" not in sys.modules
        """
    )
